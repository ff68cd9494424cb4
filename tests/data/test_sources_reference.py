"""Samples equal those that the torch reference draws from the same data, recorded by scripts/record_sources.py, with chance taken out on both sides."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from marked_samples import EVERY_WRITER, ROOT, first_question
from sample_data.edits import EDITS, add_stray, write_on_windows

from unipixel_jax.data.annotation import DrawOptions, FrameFiles
from unipixel_jax.data.draw import draw
from unipixel_jax.data.sources import class_names, marked, open_source, videorefer
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.data.templates import Templates
from unipixel_jax.errors import UserError
from unipixel_jax.processing.resize import language_frames

RECORDED = json.loads((ROOT / "tests/recordings/sources/cases.json").read_text())

WORDLESS = ("videorefer_short_caption_ref", "inst_it_image_short_caption_raw_ref", "videorefer_qa_mem", "inst_it_video_qa_raw_mem")
"""Sources of which the reference counts two words for every sample, since it looks for their words where none are; here words do not filter them."""

REASONS = {
    "hide_object": "no mask on any frame",
    "halve_frame": "make all the same size",
    "name_nothing": "expected a name",
    "shorten_masks": "masks for 9 frames, expected 10",
    "hide_youtube": "no mask on any frame",
    "drop_masks": "masks for 3 expressions, expected 4",
    "describe_absent": "number 5 is wanted of 2",
    "halve_labels": "48x32 pixels, expected 96x64",
    "mistake_photo": "a polygon named target of photo_1.jpg",
    "explain_absent": "explains photos that are not there",
    "ignore_all_classes": "no class to segment",
    "halve_classes": "48x32 pixels, expected 96x64",
    "add_class": "class 200, expected numbers from 0 to 181",
    "name_three": "expected an object or an object:part",
}
"""The messages for annotations that both refuse."""


MARKERS = Templates(
    image_query=("IMAGE {}",),
    video_query=("VIDEO {}",),
    sentence=("SENTENCE {}",),
    question=("QUESTION {}",),
    explanatory=("EXPLAIN {}",),
    description=("DESCRIPTION {}",),
    answer=("ANSWER <|seg|>",),
    caption=("CAPTION {}",),
    describe=("DESCRIBE {}",),
    locate=("LOCATE {}",),
)
"""The markers that the recording has for drawn sentences."""


class NoChance:
    """Stands for a random generator: the first choice, the lowest number, a given chance, and the middle of a range."""

    def __init__(self, chance):
        self.chance = chance

    def integers(self, low, high=None):
        return 0 if high is None else low

    def permutation(self, count):
        return np.arange(count)

    def random(self):
        return self.chance

    def uniform(self, low, high, shape):
        return np.full(shape, (low + high) / 2)

    def choice(self, items):
        return items[0]


@pytest.fixture(autouse=True)
def first_choice(monkeypatch):
    """The first choice where names decide."""
    for module in (marked, videorefer):
        monkeypatch.setattr(module, "choose_stable", lambda choices, name: choices[0])


def fingerprint(masks):
    return {"shape": list(masks.shape), "pixels": int(masks.sum()), "sha256": hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16]}


def described(example, root):
    """An example in the terms of the recording."""
    content = example.messages[0]["content"]
    first = content if isinstance(content, str) else first_question(example)
    out = {
        "words": [first, *(m["content"] for m in example.messages[1:])],
        "media": None if isinstance(content, str) else content[0]["type"],
        "data_type": example.annotation.data_type,
    }
    if out["media"] == "video":
        out["size"] = list(language_frames(example.clip.frames[:1].repeat(len(example.clip.frames), 0), example.sample_frames).shape[1:3])
        if example.annotation.task == "multimodal":
            out |= {"frame_count": len(example.clip.frames), "seconds_per_frame": pytest.approx(example.seconds_per_frame, rel=1e-12)}
        else:
            out["frames"] = example.clip.indices.tolist()
    if isinstance(example.annotation.media, FrameFiles):
        paths = example.annotation.media.paths
        out["files"] = [str(Path(paths[i]).relative_to(root)) for i in (example.clip.indices[0], example.clip.indices[-1])]
    if example.masks is not None:
        out["label_mask"] = fingerprint(example.masks.swapaxes(0, 1))
    if example.memory is not None:
        frames = example.memory.shape[1]
        padded = np.concatenate([example.memory, example.memory[:, -1:]], axis=1) if frames % 2 else example.memory
        out["refer_mask"] = fingerprint((padded[:, ::2] | padded[:, 1::2]).swapaxes(0, 1))
    if example.references:
        out["references"] = [{"coords": r.coords.tolist(), "frame": r.frame} for r in example.references]
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for write in dict.fromkeys(EVERY_WRITER.values()):
        write(folder)
    return folder


def assert_same_samples(root, name, samples, settings, refusal="cannot be trained on"):
    """Every sample of a source, "SOURCE" or "SOURCE:SPLIT", is as recorded; what the reference refuses is refused here, for this reason."""
    options = DrawOptions(sample_frames=tuple(settings["frames"]), sample_type=settings["type"], image_size=RECORDED["side"])
    source = open_source(name.split(":")[0], root, *name.split(":")[1:])
    assert len(source) == len(samples) > 0
    for annotation, sample in zip((source[i] for i in range(len(source))), samples, strict=True):
        assert annotation.data_type.replace("box", "point") == sample["data_type"].replace("box", "point")
        annotation = replace(annotation, data_type=sample["data_type"])
        chance = NoChance(settings["chance"])
        if annotation.name.endswith("broken"):  # the reference refuses it later, when it makes the labels
            with pytest.raises(UserError, match="do not alternate"):
                draw(annotation, options, chance, MARKERS)
        elif name == "revos:valid" and annotation.turns[0].masks.objects == ((),):  # nothing is to be found, on which the reference fails
            assert "refused" in sample and not draw(annotation, options, chance, MARKERS).masks.any()
        elif "refused" in sample:
            with pytest.raises(UserError, match=refusal):
                draw(annotation, options, chance, MARKERS)
        else:
            assert described(draw(annotation, options, chance, MARKERS), root) == sample


@pytest.mark.parametrize("number", range(len(RECORDED["passes"])))
@pytest.mark.parametrize("name", EVERY_WRITER)
def test_samples_are_those_of_the_reference(name, number, root):
    settings = RECORDED["passes"][number]
    assert_same_samples(root, name, settings["sources"].get(name, RECORDED["passes"][0]["sources"][name]), settings)


@pytest.mark.parametrize("name", RECORDED["splits"])
def test_other_splits_are_those_of_the_reference(name, root):
    assert_same_samples(root, name, RECORDED["splits"][name], RECORDED["passes"][0])


@pytest.mark.parametrize("recorded", RECORDED["filters"], ids=lambda recorded: str(*recorded["limits"]))
def test_filters_leave_as_many_samples_as_in_the_reference(recorded, root):
    for name in EVERY_WRITER:
        try:
            count = len(open_source(name, root, filters=Filters(**recorded["limits"])))
        except UserError as error:
            assert "the filters left none" in str(error)
            count = 0
        if "min_words" in recorded["limits"] and name in WORDLESS:
            assert recorded["counts"][name] == 0 < count == len(open_source(name, root))
        else:
            assert recorded["counts"][name] == count, name


@pytest.mark.parametrize(("name", "edit"), EDITS, ids=lambda value: getattr(value, "__name__", value))
def test_edited_annotations_are_taken_or_refused_as_by_the_reference(name, edit, tmp_path):
    recorded, settings = RECORDED["edits"][edit.__name__], RECORDED["passes"][1]
    assert recorded["source"] == name
    EVERY_WRITER[name](tmp_path)
    edit(tmp_path)
    if edit is write_on_windows:  # such files are read here
        assert recorded["refused"] == "UnicodeDecodeError"
        assert described(draw(open_source(name, tmp_path)[0], DrawOptions(), NoChance(0), MARKERS), tmp_path)["words"][0] == "IMAGE caf\u00e9"
    elif edit is add_stray:  # the reference does not look at such parts
        assert recorded["samples"] == RECORDED["passes"][1]["sources"][name]
        with pytest.raises(UserError, match="photo 99"):
            len(open_source(name, tmp_path))
    elif "refused" in recorded:
        with pytest.raises(UserError, match=REASONS[edit.__name__]):
            len(open_source(name, tmp_path))
    else:
        assert_same_samples(tmp_path, name, recorded["samples"], settings, REASONS.get(edit.__name__, "no sample is refused"))


def test_classes_are_named_as_in_the_reference():
    for name, ours in {"ade20k": class_names.ADE20K, "cocostuff": class_names.COCO_STUFF, "mapillary": class_names.MAPILLARY}.items():
        recorded = RECORDED["classes"][name]
        assert hashlib.sha256("\n".join(ours.names).encode()).hexdigest()[:16] == recorded["sha256"]
        assert sorted(ours.ignored) == recorded["ignored"]


def test_the_recording_is_of_this_sample_data():
    assert RECORDED["passes"][0]["sources"].keys() == EVERY_WRITER.keys()
