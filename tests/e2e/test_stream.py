"""Clips are tracked on every frame, as a stream that takes further words, corrections and removals, in a state of fixed size."""

import argparse
import json

import numpy as np
import pytest
from random_model import silent_model

from unipixel_jax.errors import UserError
from unipixel_jax.infer.follow import STOPPED, Targets, follow
from unipixel_jax.infer.results import LinesFile
from unipixel_jax.processing.frames import open_frames
from unipixel_jax.processing.media import sample_indices

ONE = {"max_new_tokens": 1}
HEIGHT, WIDTH = 72, 96


def drawn(count):
    """A clip of a bright disc that moves over noise."""
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:HEIGHT, :WIDTH]
    frames = rng.integers(0, 90, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        frame[(x - 20 - i % 50) ** 2 + (y - 36) ** 2 < 200] = (250, 200, 40)
    return frames


@pytest.fixture(scope="module")
def model():
    return silent_model(seed=1)


@pytest.fixture(scope="module")
def frames():
    return drawn(20)


@pytest.fixture(scope="module")
def whole(model, frames):
    """The answer with two objects on all frames."""
    return model.segment(frames, "Find <|seg|> and <|seg|>.", sample_frames=4, **ONE)


def test_every_frame_is_segmented_while_the_language_model_sees_some(model, frames, whole):
    assert whole.frames == list(range(20)) and len(whole.objects) == 2
    some = model.segment(frames, "Find <|seg|> and <|seg|>.", sample_frames=4, only_sampled=True, **ONE)
    assert some.frames == sample_indices(20, 4).tolist() and some.tokens == whole.tokens
    np.testing.assert_array_equal(some.objects[0].masks[0], whole.objects[0].masks[0])


def test_a_stream_gives_what_segment_gives(model, frames, whole):
    results = list(model.track(frames, "Find <|seg|> and <|seg|>.", sample_frames=4, **ONE))
    assert [result.frame for result in results] == whole.frames
    for place, item in enumerate(whole.objects):
        np.testing.assert_array_equal([result.masks[place] for result in results], item.masks)
        np.testing.assert_allclose([result.presence[place] for result in results], item.presence, atol=1e-6)
        assert [result.boxes[place] for result in results] == item.boxes


def test_objects_come_are_corrected_and_go_while_a_live_stream_runs(model, frames):
    taken = []
    stream = model.track((taken.append(i) or frame for i, frame in enumerate(frames)), "Find <|seg|>.", **ONE)
    disc = frames[2][..., 0] > 200
    known = {}
    for result in stream:
        assert len(taken) <= result.frame + 1, "a live stream is not read ahead"
        if result.frame == 1:
            text, (second,) = stream.prompt("There is <|seg|>.")
            assert isinstance(text, str) and second == 2
        if result.frame == 2:
            corrected = stream.correct(1, mask=disc)
            assert np.mean(corrected.masks[0] == disc) > 0.97 and corrected.presence[0] > 0.99
        if result.frame == 3:
            before = stream.result.masks[1]
            after = stream.correct(2, points=[(30, 36), (60, 10)], labels=[1, 0]).masks[1]
            known["changed"] = np.any(before != after)
            assert stream.correct(None, box=(10, 20, 50, 60)).objects == (1, 2, 3)
        if result.frame == 5:
            stream.remove(1)
        known[result.frame] = result.objects
    assert [known[i] for i in (1, 2, 3, 4, 5, 6, 19)] == [(1,), (1, 2), (1, 2), (1, 2, 3), (1, 2, 3), (2, 3), (2, 3)]
    assert known["changed"]


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_state_keeps_its_size_and_nothing_compiles_after_warm_up(model, compiled, count):
    stream = model.track(iter(drawn(count)), "Find <|seg|>.", **ONE)
    sizes = {}
    for result in stream:
        if result.frame % 10 == 3:
            number = stream.prompt("There is <|seg|>.")[1][0]
            stream.correct(number, points=[(40, 30)])
        if result.frame % 10 == 5:
            stream.correct(number, box=(5, 5, 50, 50), points=[(20, 20)])
            stream.correct(1, mask=result.masks[0] | (result.pixels[..., 0] > 200))
        if result.frame % 10 == 7:
            stream.remove(number)
        if result.frame == 11:
            compiled.clear()
        if result.frame in (12, count - 1):
            sizes[result.frame] = sum(np.asarray(value).nbytes for value in stream.save().values())
    assert len(sizes) == 2 and len(set(sizes.values())) == 1
    assert compiled == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.correct(9, points=[(1, 1)]), "there is no object 9 (known: 1)"),
        (lambda s: s.remove(2), "there is no object 2 (known: 1)"),
        (lambda s: s.correct(1, points=[(WIDTH + 1, 3)]), f"the point {WIDTH + 1},3 lies outside the image of {WIDTH}x{HEIGHT} pixels"),
        (lambda s: s.correct(1, points=[(1, 1)], labels=[1, 0]), "1 points with 2 labels"),
        (lambda s: s.correct(1, points=[(1, 1)], labels=[7]), "the label 7 of a point"),
        (lambda s: s.correct(1), "nothing to correct with"),
        (lambda s: s.correct(1, mask=np.ones((3, 4), bool)), "the mask is bool [3, 4], expected bool [72, 96]"),
        (lambda s: s.correct(1, mask=np.ones((HEIGHT, WIDTH), bool), box=(1, 1, 2, 2)), "together with points or a box"),
        (lambda s: s.prompt(" "), "the prompt is empty"),
    ],
)
def test_changes_that_make_no_sense(model, frames, change, message):
    stream = model.track(frames[:3], "Find <|seg|>.", sample_frames=2, **ONE)
    with pytest.raises(UserError, match="no frame has come yet"):
        stream.correct(1, points=[(1, 1)])
    before = next(stream)
    with pytest.raises(UserError) as error:
        change(stream)
    assert message in str(error.value)
    np.testing.assert_array_equal(stream.result.masks, before.masks)


class Quiet:
    """Shows no progress."""

    def stage(self, what, total=None):
        pass

    def advance(self):
        pass


def run(model, frames, folder, resume=False):
    """Follow a clip to files in a folder; returns the exit status."""
    source = open_frames(frames)
    args = argparse.Namespace(json=folder / "a.jsonl", masks=None, sheet=None, look="overlay", only_sampled=False, media="frames", resume=resume)
    targets = Targets.choose(args, source, folder / "frames-objects.mp4")
    return follow(lambda: model.track(source, "Find <|seg|>.", sample_frames=4, **ONE), targets, Quiet(), {"prompt": "Find <|seg|>."}, resume)


def test_an_interrupted_run_goes_on_to_the_same_files(model, frames, tmp_path, monkeypatch, capsys):
    assert run(model, frames, tmp_path / "straight") == 0
    kept, calls = LinesFile.add, []

    def add(self, result):
        calls.append(result.frame)
        if len(calls) == 8:
            raise KeyboardInterrupt
        kept(self, result)

    monkeypatch.setattr(LinesFile, "add", add)
    assert run(model, frames, tmp_path / "stopped") == STOPPED
    assert "stopped after" in capsys.readouterr().err
    lines = (tmp_path / "stopped" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line).get("frame") for line in lines] == [None, *range(7)]
    with (tmp_path / "stopped" / "a.jsonl").open("a") as file:
        file.write('{"frame": 7, "obj')
    assert run(model, frames, tmp_path / "stopped", resume=True) == 0
    assert calls[8:] == list(range(7, 20))
    for name in ("a.jsonl", "frames-objects.mp4"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["a.jsonl", "frames-objects.mp4"]


def test_a_run_goes_on_from_its_own_file_only(model, frames, tmp_path, monkeypatch):
    lines = LinesFile(tmp_path / "a.jsonl")
    lines.start({"prompt": "Another.", "text": ""})
    lines.save({"next_frame": np.asarray(3)})
    with pytest.raises(UserError, match="was made with other prompt"):
        run(model, frames, tmp_path, resume=True)
    state = tmp_path / "a.jsonl.state.npz"
    lines.start({"prompt": "x"})
    state.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"a.jsonl.state.npz is broken \(.*\): leave out --resume to start anew"):
        lines.resume({"prompt": "x"})
