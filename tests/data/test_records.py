"""Packed samples draw what their originals draw, without the original files."""

import os
import pickle
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from make_sample_data import WRITERS

from unipixel_jax.data.annotation import Annotation, DrawOptions, FrameFiles, Photo, Turn, VideoFrames
from unipixel_jax.data.draw import draw
from unipixel_jax.data.masks import LabelClasses, LabelImages, Tracks
from unipixel_jax.data.mixture import Mixture, Part
from unipixel_jax.data.records import Record, decode
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.marked import locate_turn
from unipixel_jax.data.tfds.builder import pack
from unipixel_jax.data.tfds.source import open_tfds
from unipixel_jax.errors import UserError

HEIGHT, WIDTH, FRAMES = 48, 64, 9
OPTIONS = DrawOptions(sample_frames=(3, 4), max_turns=2, image_size=32)


@dataclass(frozen=True)
class Listed:
    name: str
    annotations: tuple[Annotation, ...]

    def __len__(self):
        return len(self.annotations)

    def __getitem__(self, index):
        return self.annotations[index]

    @property
    def data_types(self):
        return [a.data_type for a in self.annotations]


def image(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def labels_of(number):
    """Two objects, 1 and 2, which move from frame to frame."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5 + number : 15 + number, 4:20] = 1
    labels[20:40, 30 + number : 45 + number] = 2
    return labels


@pytest.fixture
def source(tmp_path, rng):
    """A sample of every kind of media and several of masks."""
    root = tmp_path / "data"
    clip, marks = root / "clip", root / "marks"
    clip.mkdir(parents=True), marks.mkdir()
    for i in range(FRAMES):
        Image.fromarray(image(rng)).save(clip / f"{i:03d}.jpg", quality=90)
        Image.fromarray(labels_of(i)).save(marks / f"{i:03d}.png")
    photo = root / "photo.png"
    Image.fromarray(np.dstack([image(rng), rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)])).save(photo)
    film_path = root / "film.mp4"
    with av.open(str(film_path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(FRAMES):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image(rng))))
        film.mux(stream.encode())
    paths = tuple(str(marks / f"{i:03d}.png") for i in range(FRAMES))
    keep = (1, 3, 4, 6, 7)
    both = LabelImages(paths, ((1,), (2,)))
    kept = LabelImages(tuple(paths[i] for i in keep), ((2,),))
    photo_mask = LabelImages(paths[:1], ((1, 2),))
    polygon = Tracks((((([[10.0, 10, 40, 12, 20, 40]]),) * 5,),))
    queries = tuple(Turn("query", f"thing {i}", masks=m) for i, m in enumerate((kept, polygon, kept)))
    classes = LabelClasses(paths[0], ("none", "cat", "dog"), frozenset({0}))
    run = {"size": [HEIGHT, WIDTH], "counts": [900, 400, HEIGHT * WIDTH - 1300]}
    every_second = Tracks((((run,) * 5,),))
    frames = FrameFiles(tuple(str(clip / f"{i:03d}.jpg") for i in range(4)))

    where = (locate_turn("Where is [0] <|ref|>?", [0], every_second),)

    def sample(data_type, task, media, turns, name):
        return Annotation("toy", data_type, task, media, turns, name)

    annotations = (
        sample("seg_image", "segmentation", FrameFiles((str(photo),)), (Turn("query", "The thing.", masks=photo_mask),), "photo"),
        sample("seg_image", "segmentation", FrameFiles((str(photo),)), (Turn("classes", "", masks=classes),), "classes"),
        sample("seg_video", "segmentation", VideoFrames(str(clip), keep=keep, anchor=3), queries, "some frames of a folder"),
        sample("mem_point_video", "memory", VideoFrames(str(film_path), stride=2), where, "part of a film"),
        sample("reg_video", "region", frames, (Turn("qa", "What are [3] and [5]?", "Things.", both, (3, 5)),), "frames"),
        sample("multimodal", "multimodal", Photo(str(photo)), (Turn("chat", "What is it?", "Noise."), Turn("chat", "Sure?", "Yes.")), "a photo"),
        sample("multimodal", "multimodal", VideoFrames(str(film_path)), (Turn("chat", "What is it?", "Noise."),), "a film"),
        sample("text", "multimodal", None, (Turn("chat", "Hello?", "Hello."),), "words"),
    )
    return Listed("toy", annotations)


def assert_same(ours, theirs):
    """Check that two examples are equal, except for the paths of their files."""
    assert ours.messages == theirs.messages
    assert (ours.annotation.name, ours.annotation.data_type) == (theirs.annotation.name, theirs.annotation.data_type)
    assert (ours.seconds_per_frame, ours.sample_frames) == (theirs.seconds_per_frame, theirs.sample_frames)
    for name in ("masks", "memory"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert len(ours.references) == len(theirs.references)
    for a, b in zip(ours.references, theirs.references, strict=True):
        np.testing.assert_array_equal(a.coords, b.coords)
        assert a.frame == b.frame
    assert (ours.clip is None) == (theirs.clip is None)
    if ours.clip is not None:
        assert (ours.clip.name, ours.clip.is_image) == (theirs.clip.name, theirs.clip.is_image)
        for name in ("frames", "indices", "over_white"):
            np.testing.assert_array_equal(getattr(ours.clip, name), getattr(theirs.clip, name))


def refuse(name, reason):
    raise AssertionError(f"{name} was left out: {reason}")


def test_packed_samples_draw_what_their_originals_draw(source, tmp_path):
    expected = [[draw(annotation, OPTIONS, np.random.default_rng(seed)) for seed in range(6)] for annotation in source.annotations]
    assert sum(example.masks is not None for examples in expected for example in examples) == 24
    folder = pack(source, "train", tmp_path / "shards", refuse)
    assert folder == tmp_path / "shards" / "packed" / "toy" / "1.0.0"
    assert any("array_record" in name for name in os.listdir(folder))
    shutil.rmtree(tmp_path / "data")

    packed = pickle.loads(pickle.dumps(open_tfds("tfds:packed/toy", tmp_path / "shards")))
    assert len(packed) == len(source) and list(packed.data_types) == source.data_types
    for index, examples in enumerate(expected):
        for seed, example in enumerate(examples):
            assert_same(draw(packed[index], OPTIONS, np.random.default_rng(seed)), example)


def test_packed_sources_can_be_mixed_and_packed_again(source, tmp_path):
    first = open_tfds(_name(pack(source, "train", tmp_path / "a", refuse), tmp_path / "a"), tmp_path / "a")
    again = open_tfds(_name(pack(first, "train", tmp_path / "b", refuse), tmp_path / "b"), tmp_path / "b")
    mixed = Mixture([Part(first, 2)], 2)
    assert mixed.kinds == ("seg_image", "seg_video", "mem_point_video", "reg_video", "multimodal", "text")
    for index in range(len(source)):
        assert_same(draw(again[index], OPTIONS, np.random.default_rng(1)), draw(source[index], OPTIONS, np.random.default_rng(1)))


def _name(folder, root):
    return "tfds:" + str(folder.parent.relative_to(root))


def test_what_cannot_be_read_is_left_out_and_told(source, tmp_path):
    (tmp_path / "data" / "photo.png").write_bytes(b"no image")
    failed = {}
    pack(source, "val", tmp_path / "shards", failed.__setitem__)
    assert set(failed) == {"photo", "classes"} and "photo.png" in failed["photo"]
    packed = open_tfds("tfds:packed", tmp_path / "shards", "val")
    assert list(packed.data_types) == source.data_types[2:]
    with pytest.raises(UserError, match="exists: remove it"):
        pack(source, "val", tmp_path / "shards", refuse)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="none of the 7 samples of toy can be read"):
        pack(Listed("toy", source.annotations[:7]), "train", tmp_path / "other", failed.__setitem__)


def test_packing_leaves_the_data_set_alone(source, tmp_path, monkeypatch):
    """No temporary file of tensorflow-datasets stays, no folder of downloads, and nothing of samples that cannot be packed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    folder = pack(source, "train", tmp_path / "shards", refuse)
    assert list((tmp_path / "tmp").iterdir()) == [] and set((tmp_path / "shards").rglob("*")) == {*folder.parents[:2], folder, *folder.iterdir()}
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="none of the 7 samples"):
        pack(Listed("toy", source.annotations[:7]), "train", tmp_path / "other", lambda *_: None)
    assert list((tmp_path / "tmp").iterdir()) == [] and not (tmp_path / "other").exists() and tempfile.tempdir == str(tmp_path / "tmp")


def test_refusals(source, tmp_path):
    with pytest.raises(UserError, match="tfds:mnist: expected one of tfds:packed, tfds:ref_coco, tfds:davis"):
        open_tfds("tfds:mnist", tmp_path)
    with pytest.raises(UserError, match="leads to nothing below"):
        open_tfds("tfds:packed/toy", tmp_path)
    pack(source, "train", tmp_path, refuse)
    with pytest.raises(UserError, match="has no split 'test', expected one of train"):
        open_tfds("tfds:packed/toy", tmp_path, "test")
    pack(Listed("other", source.annotations), "train", tmp_path, refuse)
    with pytest.raises(UserError, match="leads to tfds:packed/other, tfds:packed/toy below"):
        open_tfds("tfds:packed", tmp_path)


def test_a_foreign_record_is_refused():
    with pytest.raises(UserError, match="pack the data again"):
        decode(Record('{"source": "x"}', ()))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_source_can_be_packed(name, tmp_path):
    WRITERS[name](tmp_path / "data")
    source = open_source(name, tmp_path / "data")
    packed = open_tfds("tfds:packed", _out(pack(source, "train", tmp_path / "shards", refuse)))
    assert list(packed.data_types) == list(source.data_types)
    drawn = 0
    for index in range(len(source)):
        for seed in range(2):
            try:
                expected = draw(source[index], OPTIONS, np.random.default_rng(seed))
            except UserError as error:
                with pytest.raises(UserError, match=re.escape(str(error))):
                    draw(packed[index], OPTIONS, np.random.default_rng(seed))
                continue
            assert_same(draw(packed[index], OPTIONS, np.random.default_rng(seed)), expected)
            drawn += 1
    assert drawn > 0


def _out(folder):
    """The folder of data sets in which one was written."""
    return folder.parents[2]
