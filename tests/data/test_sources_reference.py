"""What the torch reference draws from the same sample data, recorded by scripts/record_sources.py; with chance taken out on both sides, all is equal."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from marked_samples import ROOT, WRITERS, first_question, write

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.roles import memory, referring, region
from unipixel_jax.data.sources import marked, videorefer
from unipixel_jax.errors import UserError
from unipixel_jax.processing.resize import language_frames

RECORDED = json.loads((ROOT / "tests/recordings/sources/cases.json").read_text())


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
def markers(monkeypatch):
    """The markers that the recording has for drawn sentences, and the first choice where names decide."""
    monkeypatch.setattr(referring, "CAPTION_PROMPTS", ("CAPTION {}",))
    monkeypatch.setattr(region, "DESCRIBE_PROMPTS", ("DESCRIBE {}",))
    monkeypatch.setattr(memory, "LOCATE_PROMPTS", ("LOCATE {}",))
    for module in (marked, videorefer):
        monkeypatch.setattr(module, "choose_stable", lambda choices, name: choices[0])


def fingerprint(masks):
    return {"shape": list(masks.shape), "pixels": int(masks.sum()), "sha256": hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16]}


def described(example):
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
        if example.annotation.role == "multimodal":
            out |= {"frame_count": len(example.clip.frames), "seconds_per_frame": pytest.approx(example.seconds_per_frame, rel=1e-12)}
        else:
            out["frames"] = example.clip.indices.tolist()
    if example.masks is not None:
        out["label_mask"] = fingerprint(example.masks.swapaxes(0, 1))
    if example.memory is not None:
        frames = example.memory.shape[1]
        padded = np.concatenate([example.memory, example.memory[:, -1:]], axis=1) if frames % 2 else example.memory
        out["refer_mask"] = fingerprint((padded[:, ::2] | padded[:, 1::2]).swapaxes(0, 1))
    if example.references:
        out["references"] = [{"coords": r.coords.tolist(), "frame": r.frame} for r in example.references]
    return out


@pytest.mark.parametrize("number", range(len(RECORDED["passes"])))
@pytest.mark.parametrize("name", WRITERS)
def test_samples_are_those_of_the_reference(name, number, tmp_path):
    recorded = RECORDED["passes"][number]
    options = DrawOptions(sample_frames=(recorded["frames"],) * 2, sample_type="uniform", image_size=RECORDED["side"])
    source, samples = write(name, tmp_path), recorded["sources"][name]
    assert len(source) == len(samples) > 0
    for index, sample in enumerate(samples):
        annotation = replace(source[index], data_type=sample["data_type"])
        if annotation.name.endswith("broken"):  # the reference refuses it later, when it makes the labels
            with pytest.raises(UserError, match="do not alternate"):
                draw(annotation, options, NoChance(recorded["chance"]))
            continue
        assert "refused" not in sample
        assert described(draw(annotation, options, NoChance(recorded["chance"]))) == sample


def test_the_recording_is_of_this_sample_data():
    for one in RECORDED["passes"]:
        assert one["sources"].keys() == WRITERS.keys()
