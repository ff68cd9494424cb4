import json
from dataclasses import replace

import numpy as np
import pytest
from marked_samples import SIDE, WHOLE, assembled, drawn, first_question, text_of, write

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.frames import square_masks
from unipixel_jax.data.prompts_regions import CAPTION_PROMPTS
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.tasks.marks import BOX_NOISE, draw_box, draw_point, visible_frame
from unipixel_jax.errors import UserError

NAMES = ("videorefer_short_caption_ref", "inst_it_image_short_caption_raw_ref")


@pytest.fixture(scope="module", params=NAMES)
def source(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp("data"))


def test_points_lie_inside_and_boxes_around_their_masks(source):
    for annotation, example in drawn(source):
        size = example.clip.frames.shape[1:3]
        masks = square_masks(annotation.turns[0].masks.read(example.clip.indices.tolist(), size), SIDE)
        assert len(example.references) == len(masks) == 1
        for reference, mask in zip(example.references, masks, strict=True):
            here = mask[reference.frame]
            if annotation.data_type == "ref_point":
                ((x, y),) = reference.coords.astype(int)
                assert here[y, x]
            else:
                rows, columns = np.nonzero(here)
                box = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]])
                assert np.abs(reference.coords - box).max() <= BOX_NOISE * (box[1] - box[0]).max() + 1e-4


def test_the_conversation_speaks_of_each_reference_once(source):
    for annotation, example in drawn(source, DrawOptions(sample_frames=(4, 4), image_size=SIDE)):
        assert text_of(example).count("<|ref|>") == first_question(example).count("<|ref|>") == len(example.references) == 1
        assert example.messages[1] == {"role": "assistant", "content": annotation.turns[0].answer}
        assert example.masks is None and example.memory is None
        sample = assembled(example)
        assert sample.masks is None and (sample.labels >= 0).any()


def test_half_are_points_in_every_run(source, tmp_path):
    again = open_source(source.name, source.root)
    assert again.data_types == source.data_types
    assert sorted(source.data_types) == ["ref_box"] * (len(source) - len(source) // 2) + ["ref_point"] * (len(source) // 2)


def test_counts_and_names(tmp_path):
    assert len(write(NAMES[0], tmp_path)) == 4
    photos = write(NAMES[1], tmp_path)
    assert [photos[i].name for i in range(6)] == [f"{NAMES[1]} photo_{p}_{o}" for p in range(3) for o in (1, 2)]
    assert photos[3].turns[0].answer == "a green disc"


def test_the_marked_frame_is_always_taken(tmp_path):
    """A mark is on one frame of a video, of which a few are drawn; without that frame the mask would be empty."""
    source = write(NAMES[0], tmp_path)
    for seed in range(5):
        for annotation, example in drawn(source, DrawOptions(sample_frames=(3, 5), image_size=SIDE), seed):
            assert annotation.media.anchor in example.clip.indices
            assert example.clip.indices[example.references[0].frame] == annotation.media.anchor


def test_captions_are_asked_for_in_many_ways():
    assert len(set(CAPTION_PROMPTS)) == len(CAPTION_PROMPTS) >= 24
    assert all(prompt.count("{}") == 1 for prompt in CAPTION_PROMPTS)


def test_points_are_uniform_and_boxes_stay_in_the_square(rng):
    mask = np.zeros((8, 8), bool)
    mask[2, 3:5] = mask[7, 7] = True
    points = [tuple(draw_point(mask, 2, rng).coords[0].astype(int)) for _ in range(600)]
    assert {point: points.count(point) > 150 for point in set(points)} == {(3, 2): True, (4, 2): True, (7, 7): True}
    boxes = np.stack([draw_box(mask, 0, rng).coords for _ in range(200)])
    assert boxes.min() >= 1.5 and boxes.max() == 7 and boxes[:, 0].std() > 0.1  # a tenth of 5 pixels beyond 2, and the square's last pixel
    wide = np.ones((400, 400), bool)
    corners = np.stack([draw_box(wide, 0, rng).coords for _ in range(200)])
    assert 15 < corners[:, 0].max() <= 20 and corners.dtype == np.float32


def test_an_object_on_no_frame_is_refused(rng, tmp_path):
    with pytest.raises(UserError, match="empty on all 2 frames"):
        visible_frame(np.zeros((2, 4, 4), bool), "sample 1", rng)
    source = write(NAMES[0], tmp_path)
    path = tmp_path / "videorefer/VideoRefer-700K/masks_short_caption/0.json"
    path.write_text("[[[null]]]")
    with pytest.raises(UserError, match="empty on all"):
        draw(source[0], WHOLE, rng)
    path.unlink()
    with pytest.raises(UserError, match=r"masks_short_caption/0\.json does not exist"):
        draw(source[0], WHOLE, rng)


def test_a_turn_without_masks_or_frames_is_refused(rng, tmp_path):
    annotation = write(NAMES[1], tmp_path)[0]
    with pytest.raises(UserError, match="has no masks"):
        draw(replace(annotation, turns=(replace(annotation.turns[0], masks=None),)), WHOLE, rng)
    with pytest.raises(UserError, match="expected FrameFiles or VideoFrames"):
        draw(replace(annotation, media=None), WHOLE, rng)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": [{"value": "<video>\nWhat?"}]}, "1 messages, expected a question and an answer"),
        ({"conversations": [{"value": "What is <region>?"}, {"value": "A disc."}]}, "expected <video> once"),
        ({"conversations": [{"value": "<video>\nWhat?"}, {"value": "A disc."}]}, "0 <region> for 1 marked objects"),
        ({"conversations": [{"value": "<video>\n<region> or <region>?"}, {"value": "Both."}], "annotation": [{"1": None}, {"1": None}]}, "2 marked objects"),
    ],
)
def test_broken_records_are_named(tmp_path, change, message):
    write(NAMES[0], tmp_path)
    path = tmp_path / "videorefer/VideoRefer-700K/videorefer-short-caption-500k-wo-masks.json"
    records = json.loads(path.read_text())
    records[1] |= change
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=message):
        len(open_source(NAMES[0], tmp_path))


def test_a_missing_file_an_unknown_split_and_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        len(open_source(NAMES[0], tmp_path))
    with pytest.raises(UserError, match="no split 'valid', expected one of: train"):
        len(open_source(NAMES[1], tmp_path, "valid"))
    with pytest.raises(UserError, match="did you mean inst_it_image_short_caption_raw_ref"):
        open_source("inst_it_image_short_caption_ref", tmp_path)
