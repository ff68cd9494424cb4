"""Every source of segmentation data, written small, opened and drawn. Discs are told apart by their colours in the pixels that were read."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from make_sample_data import WRITERS
from sample_data.discs import COLOURS
from sample_data.photos import CLASSES

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.frames import read_frames, square_masks
from unipixel_jax.data.masks import LabelClasses
from unipixel_jax.data.sources import SOURCES, class_names, open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.errors import UserError

COUNTS = {
    "revos": 5 + 5 + 4,  # a disc that is there for one frame of a long video is left out
    "mevis": 6,
    "lvvis": 6,
    "ref_youtube_vos": 4,
    "ref_davis17": 4,
    "ref_sav": 2,
    "groundmore": 4,
    "vicas": 4,
    "reason_seg": 4,
    "ade20k": 3,
    "cocostuff": 3,
    "mapillary": 3,
    "paco_lvis": 2,
    "pascal_part": 2,
    "refcoco": 2,
    "refcoco+": 2,
    "refcocog": 2,
    "refclef": 2,
}
OTHER_SPLITS = {
    "revos": {"valid": 18},
    "mevis": {"valid_u": 4, "valid": 4},
    "ref_youtube_vos": {"valid": 4},
    "ref_davis17": {"valid": 4},
    "groundmore": {"test": 4},
    "vicas": {"val": 2, "test": 2},
    "reason_seg": {"val": 3, "test": 3},
    "ade20k": {"val": 3},
    "cocostuff": {"val": 3},
    "mapillary": {"val": 3},
    "paco_lvis": {"val": 2},
    "refcoco": {"val": 6, "testA": 6, "test": 6},
    "refclef": {"val": 6, "testA": 6, "testB": 6, "test": 6},
}
NAMES = {"ade20k": class_names.ADE20K, "cocostuff": class_names.COCO_STUFF, "mapillary": class_names.MAPILLARY}
HUES = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230)}
OPTIONS = DrawOptions(sample_frames=(4, 6), image_size=80)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in COUNTS:
        WRITERS[name](folder)
    return folder


def coloured(frames, words):
    """The pixels of the named colours, bool [F, H, W]."""
    palette = np.array([*HUES.values(), (128, 128, 128)])
    nearest = ((frames[..., None, :].astype(int) - palette) ** 2).sum(-1).argmin(-1)
    return np.isin(nearest, [i for i, name in enumerate(HUES) if name in words])


def named(source, turn):
    """The words of a turn, in which classes stand for colours."""
    if source not in CLASSES:
        return turn.text
    return COLOURS[CLASSES[source].index(NAMES[source].names.index(turn.text))]


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_all_sources_have_sample_data_and_are_counted_here():
    assert WRITERS.keys() == SOURCES.keys()
    names = {name for name in SOURCES if not name.startswith(("videorefer", "inst_it", "osprey", "llava"))}
    assert names == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_every_sample_has_the_masks_that_its_words_name(root, name):
    source = open_source(name, root)
    assert len(source) == COUNTS[name] == len(source.data_types)
    for index in range(len(source)):
        annotation = source[index]
        assert (annotation.task, annotation.source, annotation.data_type) == ("segmentation", name, source.data_types[index])
        clip, indices = read_frames(annotation.media, OPTIONS, np.random.default_rng(index))
        assert annotation.data_type == ("seg_image" if len(clip.frames) == 1 else "seg_video")
        turns = [t for turn in annotation.turns for t in (turn.masks.turns() if isinstance(turn.masks, LabelClasses) else [turn])]
        for turn in turns:
            masks = turn.masks.read(indices, clip.frames.shape[1:3])
            assert masks.shape == (1, *clip.frames.shape[:3]) and masks.dtype == bool
            expected = coloured(clip.frames, named(name, turn))
            assert expected.any() and overlap(masks[0], expected) > 0.7, (annotation.name, turn.text)


@pytest.mark.parametrize("name", COUNTS)
def test_every_sample_can_be_drawn(root, name):
    source = open_source(name, root)
    for index in range(len(source)):
        example = draw(source[index], OPTIONS, np.random.default_rng(index))
        questions, answers = example.messages[::2], example.messages[1::2]
        assert questions[0]["content"][0] == {"type": "video"} and all(isinstance(q["content"], str) for q in questions[1:])
        assert len(questions) == len(answers) <= OPTIONS.max_turns
        assert example.masks.shape == (len(answers), len(example.clip.frames), 80, 80)
        assert all(a["content"].count("<|seg|>") == 1 for a in answers)
        same = draw(source[index], OPTIONS, np.random.default_rng(index))
        assert same.messages == example.messages and (same.masks == example.masks).all() and (same.clip.frames == example.clip.frames).all()


@pytest.mark.parametrize(("name", "split", "count"), [(n, s, c) for n, splits in OTHER_SPLITS.items() for s, c in splits.items()])
def test_other_splits(root, name, split, count):
    source = open_source(name, root, split)
    assert len(source) == count
    clip, indices = read_frames(source[0].media, OPTIONS, np.random.default_rng(0))
    turn = source[0].turns[0]
    if turn.masks is None:
        with pytest.raises(UserError, match="cannot be trained on"):
            draw(source[0], OPTIONS, np.random.default_rng(0))
    else:
        objects = len(turn.masks.turns()) if isinstance(turn.masks, LabelClasses) else 1
        assert turn.masks.read(indices, clip.frames.shape[1:3]).shape == (objects, *clip.frames.shape[:3])


def test_masks_follow_the_order_of_the_turns(root):
    """Each answer's mask is that of the words in its own question."""
    source = open_source("refcoco", root)
    for seed in range(5):
        example = draw(source[0], DrawOptions(image_size=64), np.random.default_rng(seed))
        questions = [m["content"] if isinstance(m["content"], str) else m["content"][1]["text"] for m in example.messages[::2]]
        for mask, question in zip(example.masks, questions, strict=True):
            assert overlap(mask, square_masks(coloured(example.clip.frames, question)[None], 64)[0]) > 0.6


def test_long_videos_of_revos_are_cut_to_where_their_objects_are(root):
    source = open_source("revos", root)
    lengths = {a.turns[0].text: len(a.media.paths) for a in (source[i] for i in range(len(source))) if "TAO" in a.name}
    assert lengths == {"The red disc.": 20, "Which disc is green?": 15, "A green disc": 15, "red and green": 20}
    assert [a.turns[0].kind for a in (source[0], source[1])] == ["query", "sentence"]


def test_words_are_as_the_reference_has_them(root):
    def texts(name):
        source = open_source(name, root)
        return [t.text for i in range(len(source)) for t in source[i].turns]

    assert texts("lvvis")[:2] == ["red disc", "green disc"]
    assert texts("groundmore")[:2] == ["Which disc is red?", "Where are red and blue?"]
    assert texts("paco_lvis")[:3] == ["red disc", "disc:green rim", "disc:blue rim"]
    assert open_source("reason_seg", root)[3].turns[0].kind == "explanatory"


def test_a_folder_of_annotations_of_vicas(root, tmp_path):
    """In the folder, masks are part of the annotations."""
    WRITERS["vicas"](tmp_path)
    path = tmp_path / "vicas/annotations/annotations_wo_masks_v1.0.json"
    content = json.loads(path.read_text())
    path.unlink()
    path.mkdir()
    for video, item in content.items():
        files = [json.loads((tmp_path / f"vicas/masks/{video}/{i}.json").read_text()) for i in range(2)]
        for f, step in enumerate(item["segmentations"]):
            step |= {"track_ids": [3, 1, 2], "mask_rles": [files[1][f][1], files[0][f][0], files[1][f][0]]}
        (path / f"{video}.json").write_text(json.dumps(item))
    old, new = open_source("vicas", root), open_source("vicas", tmp_path)
    for i in range(len(old)):
        assert (old[i].turns[0].masks.read([2, 5], (128, 192)) == new[i].turns[0].masks.read([2, 5], (128, 192))).all()


def test_parts_are_named_both_ways(root):
    source = open_source("pascal_part", root)
    asked = " ".join(str(draw(source[0], OPTIONS, np.random.default_rng(i)).messages) for i in range(20))
    assert "green rim of the disc" in asked and "disc green rim" in asked


def test_filters_look_at_frames(root):
    assert len(open_source("revos", root, filters=Filters(min_frames=2))) == 9
    assert len(open_source("revos", root, filters=Filters(max_frames=12))) == 10
    with pytest.raises(UserError, match=r"revos \(train\) has no samples: 14 were found"):
        len(open_source("revos", root, filters=Filters(min_frames=100)))


def test_a_source_is_cheap_to_send(root):
    source = open_source("mevis", root)
    assert len(source) == 6
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy[2] == source[2] and copy.data_types == source.data_types


def test_unknown_names():
    with pytest.raises(UserError, match="no source 'refcocoo': did you mean refcoco"):
        open_source("refcocoo", ".")
    with pytest.raises(UserError, match="is not a folder"):
        open_source("refcoco", "nowhere")


def test_unknown_splits(root):
    with pytest.raises(UserError, match="lvvis has no split 'valid', expected one of: train"):
        len(open_source("lvvis", root, "valid"))


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("mevis", "mevis/train/mask_dict.json", "{", "mask_dict.json is not JSON"),
        ("mevis", "mevis/train/mask_dict.json", "{}", "different versions"),
        ("mevis", "mevis/train/mask_dict.json", '{"0": [], "1": [], "5": [], "6": []}', "masks for 0 frames, expected 10"),
        ("ref_davis17", "ref_davis17/train/mask_dict.pkl", "hello", "has a pickle that is cut off or damaged"),
        ("refcoco", "lisa/refer_seg/refcoco/refs(unc).p", "cos\nsystem\n(S'true'\ntR.", "asks for os.system, expected plain values only"),
        ("refcoco", "lisa/refer_seg/refcoco/instances.json", '{"images": [], "annotations": []}', "expected both in"),
        ("reason_seg", "lisa/reason_seg/ReasonSeg/explanatory/train.json", '[{"image": "x.jpg", "query": "", "outputs": ""}]', "not there: x"),
    ],
)
def test_broken_annotations(tmp_path, name, path, content, message):
    WRITERS[name](tmp_path)
    (tmp_path / path).write_text(content)
    with pytest.raises(UserError, match=message):
        len(open_source(name, tmp_path))


LABEL_IMAGES = ("ade20k", "cocostuff", "mapillary")
"""Sources without annotation files."""


@pytest.mark.parametrize("content", [{}, []], ids=["{}", "[]"])
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in LABEL_IMAGES])
def test_annotation_files_of_another_layout(tmp_path, name, content):
    WRITERS[name](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".p", ".pkl")]
    for path in files:
        path.write_bytes(json.dumps(content).encode() if path.suffix == ".json" else pickle.dumps(content))
    wrong = r"(: '\w+' is missing|: something is of another kind \(\w+Error: .+\)| has no samples: 0 were found) in "
    with pytest.raises(UserError, match=rf"^{re.escape(name)} \(train\){wrong}") as caught:
        len(open_source(name, tmp_path))
    assert any(str(path) in str(caught.value) for path in files) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LABEL_IMAGES)
def test_no_label_images(tmp_path, name):
    WRITERS[name](tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=rf"{name} \(train\) has no samples: 0 were found below "):
        len(open_source(name, tmp_path))


def test_a_missing_key_in_the_second_file(tmp_path):
    WRITERS["refcoco"](tmp_path)
    path = tmp_path / "lisa/refer_seg/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    del refs[0]["split"]
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(UserError, match=r"refcoco \(train\): 'split' is missing in .*/refs\(unc\).p or .*/instances.json;"):
        len(open_source("refcoco", tmp_path))


@pytest.mark.parametrize("name", COUNTS)
def test_a_missing_data_set(tmp_path, name):
    with pytest.raises(UserError, match="does not exist: put the data set there"):
        len(open_source(name, tmp_path))


def test_too_many_objects(root):
    source = open_source("refcoco", root)
    with pytest.raises(UserError, match="has 3 objects, expected at most 2"):
        draw(source[0], DrawOptions(max_objects=2, image_size=32), np.random.default_rng(0))
