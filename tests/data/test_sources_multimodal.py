import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from marked_samples import TOKENIZER, WHOLE, assembled, text_of, write, write_video
from PIL import Image

from unipixel_jax.data.annotation import DrawOptions, FrameFiles, Photo, VideoFrames
from unipixel_jax.data.draw import draw
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.data.tasks.multimodal import spread_frames
from unipixel_jax.errors import UserError
from unipixel_jax.processing.video import frame_rate

NAME = "llava_instruct_665k_videogpt_plus_576k"
FILE = "general/llava_v1_5_mix665k_with_videogpt_plus_576k.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(NAME, tmp_path_factory.mktemp("data"))


def test_kinds(source):
    assert list(source.data_types) == ["multimodal", "multimodal", "text"] * 2 + ["text"]
    assert [type(source[i].media) for i in range(3)] == [Photo, VideoFrames, type(None)]


def test_conversations_about_photos_videos_and_nothing(source):
    for index, kind in enumerate(["image", "video", None] * 2):
        annotation, example = source[index], draw(source[index], WHOLE, np.random.default_rng(0))
        first = example.messages[0]["content"]
        assert (first if kind is None else first[0]) == (annotation.turns[0].text if kind is None else {"type": kind})
        assert "<image>" not in text_of(example) and "<video>" not in text_of(example)
        assert [m["content"] for m in example.messages[1::2]] == [turn.answer for turn in annotation.turns]
        assert (example.clip is None) == (kind is None)


def test_arrays_come_about(source):
    """A photo has ``<|image_pad|>`` and a video ``<|video_pad|>``, one for each merged token."""
    image, video = (TOKENIZER.backend.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video"))
    for index, token in enumerate((image, video, None)):
        sample = assembled(draw(source[index], DrawOptions(), np.random.default_rng(0)))
        if token is None:
            assert sample.conversation.media is None and not np.isin(sample.conversation.input_ids, (image, video)).any()
        else:
            assert (sample.conversation.input_ids == token).sum() == np.prod(sample.conversation.media.grid_thw) // 4
        assert sample.masks is None


def test_a_video_is_read_at_two_frames_a_second(source):
    """30 frames at 10 a second: 6 frames from the first to the last, half a second apart; fewer where fewer are allowed."""
    example = draw(source[1], DrawOptions(sample_frames=(8, 8)), np.random.default_rng(0))
    assert example.clip.indices.tolist() == [0, 6, 12, 17, 23, 29]
    assert example.seconds_per_frame == pytest.approx(0.5)
    short = draw(source[1], DrawOptions(sample_frames=(2, 5)), np.random.default_rng(0))
    assert short.clip.indices.tolist() == [0, 10, 19, 29] and short.seconds_per_frame == pytest.approx(0.75)
    assert frame_rate(Path(source[1].media.path)) == 10


@pytest.mark.parametrize(
    ("count", "rate", "most", "taken"),
    [(300, 30, 16, 16), (45, 30, 16, 4), (3, 30, 16, 2), (2, 25, 16, 2), (90, 30, 16, 6), (105, 30, 16, 6), (300, 30, 7, 6)],
)
def test_frames_are_even_in_number_and_reach_both_ends(count, rate, most, taken):
    frames = spread_frames(count, rate, most)
    assert len(frames) == taken and frames[0] == 0 and frames[-1] == count - 1
    assert np.array_equal(frames, np.linspace(0, count - 1, taken).round())


@pytest.mark.parametrize(("count", "most"), [(1, 16), (30, 1)])
def test_a_video_of_one_frame_is_refused(count, most):
    with pytest.raises(UserError, match="expected at least 2"):
        spread_frames(count, 30, most)


@pytest.mark.parametrize(
    ("filters", "left"),
    [(Filters(max_words=2), 5), (Filters(min_words=3), 2), (Filters(min_seconds=4), 5), (Filters(max_seconds=2.5), 5), (Filters(max_frames=1), 7)],
)
def test_filters(source, filters, left):
    assert len(open_source(NAME, source.root, filters=filters)) == left


def test_speakers_who_do_not_alternate_are_refused_when_drawn(source, rng):
    with pytest.raises(UserError, match=f"{NAME} broken: question and answer do not alternate near 'Hello"):
        draw(source[6], WHOLE, rng)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.jpg", "video": "b.mp4"}, "record 0 has both an image and a video"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "record 0 has 1 messages"),
    ],
)
def test_broken_records_are_named(tmp_path, record, message):
    write(NAME, tmp_path)
    records = json.loads((tmp_path / FILE).read_text())
    records[0] |= record
    (tmp_path / FILE).write_text(json.dumps(records))
    with pytest.raises(UserError, match=message):
        len(open_source(NAME, tmp_path))


def test_a_black_video_is_refused(source, tmp_path, rng):
    write_video(tmp_path / "black.mp4", [Image.new("RGB", (64, 48))] * 8)
    with pytest.raises(UserError, match="is black on all 4 frames"):
        draw(replace(source[1], media=VideoFrames(str(tmp_path / "black.mp4"))), WHOLE, rng)


def test_media_that_are_not_there_or_of_another_kind(source, rng):
    with pytest.raises(UserError, match="does not exist: expected a video file"):
        draw(replace(source[1], media=VideoFrames("nowhere.mp4")), WHOLE, rng)
    with pytest.raises(UserError, match="expected a photo"):
        draw(replace(source[0], media=Photo(source[1].media.path)), WHOLE, rng)
    with pytest.raises(UserError, match="is not a photo or video"):
        draw(replace(source[1], media=VideoFrames(str(source.root / FILE))), WHOLE, rng)
    with pytest.raises(UserError, match="expected a Photo, VideoFrames or None"):
        draw(replace(source[0], media=FrameFiles(("a.jpg",))), WHOLE, rng)
