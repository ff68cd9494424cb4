"""Files of data sets that were damaged, are of another kind, or mean harm."""

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.data import files
from unipixel_jax.data.files import read_json, read_labels, read_pickle, read_text
from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import Content

CASES = Path(__file__).parents[1] / "cases"


def put(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": "\xba\xec"}', "is not text in UTF-8 .*: save it as UTF-8"),
        ('{"a": "b"}'.encode("utf-16"), "is not text in UTF-8 .*the mark of UTF-16.*: save it as UTF-8"),
        ('{"a": "b"}'.encode("utf-16-le"), "is not text in UTF-8 .*null characters.*: save it as UTF-8"),
        (b'{"a": "b\x00"}', "is not text in UTF-8 .*null characters"),
        (b"", "is not JSON"),
    ],
)
def test_json_that_is_none(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"a\.json {message}") as caught:
        read_json(put(tmp_path / "a.json", content))
    assert "\n" not in str(caught.value)


def test_byte_order_marks_and_fallbacks(tmp_path):
    assert read_json(put(tmp_path / "a.json", '{"a": "é"}'.encode("utf-8-sig"))) == {"a": "é"}
    assert read_text(put(tmp_path / "a.txt", b"caf\xe9"), "cp1252") == "café"
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        for read in (read_json, read_pickle, read_labels):
            with pytest.raises(UserError, match="is a pipe, socket or device"):
                read(path)
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)


def test_large_files_need_memory(tmp_path, monkeypatch):
    path = put(tmp_path / "a.json", b'["' + bytes([97]) * 1000 + b'"]')
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    assert len(read_json(path)[0]) == 1000
    monkeypatch.setattr(files, "_available_memory", lambda: 2000)
    with pytest.raises(UserError, match="use a machine with more"):
        read_json(path)


def test_plain_pickles(tmp_path):
    value = {"a": [1, 2.5, None, True, b"bytes", "words", (1, 2)], 3: OrderedDict([("b", 1), (2, "c")])}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert read_pickle(put(tmp_path / "a.p", pickle.dumps(value, protocol))) == value


def _again(times, call):
    """A pickle with a long word, and a list of what a call makes of it, many times."""
    word = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"q\x01"
    return b"\x80\x02" + call[0] + b"q\x00" + word + b"](" + call[1] * times + b"e."


NESTED = b"\x80\x02)" + b"\x85" * 200_000


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02}" + NESTED[2:] + b"K\x01s.",
        b"\x80\x02ccollections\nOrderedDict\n](](" + NESTED[2:] + b"K\x01ee\x85R.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        _again(1000, (b"c_codecs\nencode\n", b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R")),
        b"\x80\x02c_codecs\nencode\nK\x01K\x02\x86R.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    ],
    ids=["text", "code", "nested key", "nested key of a call", "memo", "one word again and again", "call with a number", "dictionary of a number"],
)
def test_pickles_that_mean_harm(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.p ") as caught:
        read_pickle(put(tmp_path / "a.p", content))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def encoded(labels, kind, **options):
    out = io.BytesIO()
    Image.fromarray(labels).save(out, kind, **options)
    return out.getvalue()


LABELS = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "GIF"])
def test_formats_that_keep_numbers(tmp_path, kind):
    for source in (put(tmp_path / "a.png", encoded(LABELS, kind)), Content("a.png", encoded(LABELS, kind))):
        assert read_labels(source).tolist() == LABELS.tolist()


def test_sixteen_bits_and_one(tmp_path):
    wide = LABELS.astype(np.uint16) * 1000
    assert read_labels(put(tmp_path / "a.png", encoded(wide, "PNG"))).tolist() == wide.tolist()
    assert read_labels(put(tmp_path / "b.png", encoded(LABELS > 9, "PNG"))).tolist() == (LABELS > 9).astype(int).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(LABELS, "JPEG"), "is no image of masks: expected PNG, .*: save it as PNG"),
        ((CASES / "eps_mask/p0.png").read_bytes(), "is no image of masks"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of masks"),
        (b"BLP2" + bytes(200), "is no image of masks"),
        (encoded(LABELS, "PNG")[:45], "is broken or incomplete"),
        (encoded(LABELS.astype(np.float32), "TIFF"), "holds numbers with fractions"),
        (encoded(np.stack([LABELS] * 4, -1), "PNG"), "has 4 channels, expected one"),
    ],
    ids=["JPEG", "EPS", "EPS head", "BLP", "cut off", "floats", "alpha"],
)
def test_what_is_no_label_image(tmp_path, content, message):
    for source in (put(tmp_path / "a.png", content), Content("a.png", content)):
        if message.startswith("has 4") and isinstance(source, Content):
            continue  # four equal channels are taken for gray there
        with pytest.raises(UserError, match=rf"a\.png {message}"):
            read_labels(source)


def test_any_cut_json_is_read_or_refused(tmp_path):
    whole = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    for end in range(len(whole)):
        with pytest.raises(UserError, match="is not JSON"):
            read_json(put(tmp_path / "a.json", whole[:end]))
