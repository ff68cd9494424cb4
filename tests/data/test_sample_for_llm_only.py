"""SAM sees every frame of a clip, and the language model those that are sampled."""

from dataclasses import replace

import numpy as np
import pytest
from marked_samples import CONFIG, EVERY_WRITER, TOKENIZER, assembled

from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.data.sources import open_source
from unipixel_jax.processing.square import square_frames

SAMPLED = DrawOptions(sample_frames=(3, 3), image_size=CONFIG.sam2.image_size)
ALL = replace(SAMPLED, sample_for_llm_only=True)


def both(source, index):
    """The same draw of a sample without and with all frames for SAM."""
    return (draw(source[index], options, np.random.default_rng(index)) for options in (SAMPLED, ALL))


@pytest.mark.parametrize("name", ["mevis", "ref_sav", "videorefer_qa_mem", "inst_it_video_qa_raw_mem"])
def test_the_sampled_frames_are_the_same_and_sam_sees_all(name, tmp_path):
    EVERY_WRITER[name](tmp_path)
    source, longer = open_source(name, tmp_path), 0
    for index in range(len(source)):
        few, every = both(source, index)
        assert few.tracked is None and few.messages == every.messages
        np.testing.assert_array_equal(every.clip.frames, few.clip.frames)
        np.testing.assert_array_equal(every.clip.indices, few.clip.indices)
        assert [reference.frame for reference in every.references] == [reference.frame for reference in few.references]
        for ours, theirs in zip(every.references, few.references, strict=True):
            np.testing.assert_array_equal(ours.coords, theirs.coords)
        if every.tracked is None:  # a source that takes all frames
            continue
        longer += len(every.tracked.frames) > len(every.clip.frames)
        np.testing.assert_array_equal(every.tracked.indices, np.arange(len(every.tracked.frames)))
        np.testing.assert_array_equal(every.tracked.frames[every.clip.indices], every.clip.frames)
        np.testing.assert_array_equal(every.masks[:, every.clip.indices], few.masks)
        sample = assembled(every)
        assert len(sample.masks) == len(every.tracked.frames) and sample.conversation.media.frame_count == len(every.clip.frames)
        np.testing.assert_array_equal(sample.conversation.media.frames, square_frames(every.tracked.frames, CONFIG.sam2.image_size))
        np.testing.assert_array_equal(sample.conversation.input_ids, assembled(few).conversation.input_ids)
    assert bool(longer) == (name != "inst_it_video_qa_raw_mem")


@pytest.mark.parametrize("name", ["videorefer_short_caption_ref", "osprey_conversation"])
def test_samples_without_masks_do_not_change(name, tmp_path):
    EVERY_WRITER[name](tmp_path)
    few, every = both(open_source(name, tmp_path), 0)
    assert every.tracked is None and every.messages == few.messages
    np.testing.assert_array_equal(every.clip.frames, few.clip.frames)


def test_a_batch_has_all_frames_for_sam(tmp_path):
    EVERY_WRITER["mevis"](tmp_path)
    mixture = open_mixture("mevis", tmp_path, 1)
    batches = []
    for options in (SAMPLED, ALL):
        with open_loader(mixture, DrawSample(TOKENIZER, CONFIG, options), LoaderOptions()) as loader:
            batches.append(next(loader).arrays)
    few, every = batches
    np.testing.assert_array_equal(every.inputs.input_ids, few.inputs.input_ids)
    np.testing.assert_array_equal(every.inputs.patches, few.inputs.patches)
    assert few.clips.counts.item() == 3 < every.clips.counts.item()
    assert every.clips.frames.shape[2] == BUCKETS.frames.size(every.clips.counts.item())
    assert every.clips.masks[0, 0, : every.clips.counts.item()].any(axis=(1, 2, 3)).sum() > 3
