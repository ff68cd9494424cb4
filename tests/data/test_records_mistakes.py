"""Packed data sets that were damaged or mean harm: records, shards, and the files beside them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from make_sample_data import WRITERS

from unipixel_jax.data.annotation import Annotation, DrawOptions, FrameFiles, Photo, Turn, VideoFrames
from unipixel_jax.data.draw import draw
from unipixel_jax.data.records import Record, decode, encode
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.tfds.builder import pack
from unipixel_jax.data.tfds.source import open_tfds
from unipixel_jax.errors import UserError

OPTIONS = DrawOptions(image_size=32)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """One sample of RefCOCO."""
    root = tmp_path_factory.mktemp("data")
    WRITERS["refcoco"](root)
    return encode(open_source("refcoco", root)[0])


@pytest.fixture
def shards(tmp_path):
    """A packed data set and its folder."""
    WRITERS["refcoco"](tmp_path / "data")
    folder = pack(open_source("refcoco", tmp_path / "data"), "train", tmp_path, lambda name, reason: None)
    return tmp_path, folder


def changed(record, path, value):
    content = json.loads(record.text)
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return Record(json.dumps(content), record.files)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["source"], 7),
        (["data_type"], None),
        (["name"], ["a"]),
        (["role"], "other"),
        (["role"], ["segmentation"]),
        (["files"], []),
        (["files"], 5),
        (["files"], [None]),
        (["media"], 5),
        (["media"], {"kind": "video", "keep": None, "stride": 0, "anchor": None}),
        (["media"], {"kind": "video", "keep": None, "stride": "1", "anchor": None}),
        (["media"], {"kind": "video", "keep": [1e300], "stride": 1, "anchor": None}),
        (["media"], {"kind": "video", "keep": [10**30], "stride": 1, "anchor": None}),
        (["media"], {"kind": "video", "keep": None, "stride": 1, "anchor": "0"}),
        (["turns"], None),
        (["turns"], [[]]),
        (["turns", 0, "text"], 7),
        (["turns", 0, "answer"], None),
        (["turns", 0, "kind"], {}),
        (["turns", 0, "ids"], ["0"]),
        (["turns", 0, "masks", "size"], [10**9, 10**9]),
        (["turns", 0, "masks", "size"], "96"),
        (["turns", 0, "masks", "objects"], 7),
        (["turns", 0, "masks", "objects"], [[7]]),
        (["turns", 0, "masks", "objects"], [7]),
    ],
)
def test_records_of_other_values(record, path, value):
    with pytest.raises(UserError, match="a record is not what `unipixel-jax data pack` writes") as caught:
        decode(changed(record, path, value))
    assert "\n" not in str(caught.value)


def test_records_that_are_no_json(record):
    for text in ("", "[" * 200_000, "[]", "7", record.text[:-1]):
        with pytest.raises(UserError, match="pack the data again"):
            decode(Record(text, record.files))


@given(st.data())
def test_any_value_anywhere_is_drawn_or_refused(record, data):
    content = json.loads(record.text)
    paths = [["source"], ["media"], ["files", 0], ["turns", 0, "kind"], ["turns", 0, "text"], ["turns", 0, "masks"], ["turns", 0, "masks", "objects", 0, 0]]
    path = data.draw(st.sampled_from([p for p in paths if p[0] in content]))
    value = data.draw(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}))
    try:
        draw(decode(changed(record, path, value)), OPTIONS, np.random.default_rng(0))
    except UserError as error:
        assert str(error)


def test_masks_that_do_not_fill_their_size(record):
    for counts in ("", "0", "zzz", json.loads(record.text)["turns"][0]["masks"]["objects"][0][0][:-1]):
        with pytest.raises(UserError, match="not in one of COCO's encodings"):
            draw(decode(changed(record, ["turns", 0, "masks", "objects", 0, 0], counts)), OPTIONS, np.random.default_rng(1))


def test_half_characters_are_refused_when_they_are_drawn(record):
    annotation = decode(changed(record, ["turns", 0, "text"], "a \ud83d"))
    with pytest.raises(UserError, match="expected text in Unicode with whole characters"):
        draw(annotation, OPTIONS, np.random.default_rng(0))


@pytest.mark.parametrize("media", [Photo, lambda path: FrameFiles((path,)), VideoFrames])
def test_pipes_are_not_packed(tmp_path, media):
    os.mkfifo(tmp_path / "a.jpg")
    annotation = Annotation("s", "multimodal", "multimodal", media(str(tmp_path / "a.jpg")), (Turn("chat", "a", "b"),), "n")
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        encode(annotation)


def rewrite(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def test_features_whose_modules_would_be_imported(shards, monkeypatch):
    root, folder = shards
    (root / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(root))
    features = {"evil.Feature": lambda c: c.update(pythonClassName="evil.Feature"), "evil.Old": lambda c: {"type": "evil.Old", "content": {}}}
    for name, change in features.items():
        rewrite(folder / "features.json", change)
        with pytest.raises(UserError, match=rf"features\.json names the class '{name}'"):
            open_tfds("tfds:packed", root)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset_info.json", lambda c: c["splits"][0].update(shardLengths=[str(10**12)]), "bytes, too few for 1000000000000 records"),
        ("dataset_info.json", lambda c: c["splits"][0].update(shardLengths=["2", "2"]), "does not exist: pack or prepare"),
        ("dataset_info.json", lambda c: c["splits"][0].update(shardLengths=["x"]), "is no data set of tensorflow-datasets, or broken"),
        ("dataset_info.json", lambda c: c.update(fileFormat="other"), "is no data set of tensorflow-datasets, or broken"),
        ("dataset_info.json", lambda c: [c], "holds a list, expected a JSON object"),
        ("features.json", lambda c: {"a": 1}, "is no data set of tensorflow-datasets, or broken"),
        ("metadata.json", lambda c: c.update(filters=7), "was packed with the filters 7"),
        ("metadata.json", lambda c: c.update(filters={"other": 1}), "was packed with the filters"),
        ("metadata.json", lambda c: c.update(data_types=[["seg_image", 10**9]]), "tells other kinds than those of 2 samples"),
        ("metadata.json", lambda c: c.update(data_types=[["a", -1], ["b", 3]]), "tells other kinds than those of 2 samples"),
        ("metadata.json", lambda c: c.update(data_types=[["a"], 7]), "does not tell the kinds of its samples"),
        ("metadata.json", lambda c: c.update(data_types=None), "does not tell the kinds of its samples"),
    ],
)
def test_files_beside_shards(shards, name, change, message):
    root, folder = shards
    rewrite(folder / name, change)
    with pytest.raises(UserError, match=message) as caught:
        assert open_tfds("tfds:packed", root).data_types
    assert "\n" not in str(caught.value)


def test_shards_that_were_damaged(shards):
    root, folder = shards
    (path,) = folder.glob("*.array_record*")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(40):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, 6000, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes() if rng.random() < 0.8 else whole[: rng.integers(len(whole))])
        try:
            source = open_tfds("tfds:packed", root)
            for index in range(len(source)):
                draw(source[index], OPTIONS, np.random.default_rng(0))
        except UserError as error:
            told += 1
            assert str(error)
    assert told > 0


def test_a_shard_that_is_a_pipe(shards):
    root, folder = shards
    (path,) = folder.glob("*.array_record*")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        open_tfds("tfds:packed", root)
