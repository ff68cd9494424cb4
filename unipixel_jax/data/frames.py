"""Chooses the frames of a clip that a drawn sample has, reads their pixels, and resizes masks to SAM's square.

N frames of the media that count, F chosen ones, O objects, H and W in pixels, S side of the square. Source: the loaders in UniPixel's
``unipixel/utils/io.py``, and the antialiased bilinear ``resize`` followed by ``> 0`` that its datasets apply to masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.annotation import DrawOptions, FrameFiles, VideoFrames
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Clip, Content, list_frames, read_media, sample_indices
from unipixel_jax.processing.resize import bilinear_weights

_ALL = 1 << 30
"""More frames than any clip has."""


def choose_frames(count: int, options: DrawOptions, rng: np.random.Generator, anchor: int | None = None) -> NDArray[np.int64]:
    """Draw which frames to take.

    The number of frames is drawn first, between the two of ``sample_frames``. A clip that has no more is taken whole. Of a longer one, "uniform" takes
    frames spread evenly from the first to the last, and "random" one from each of as many equal segments, which is never the very last frame.

    Args:
        count: N, the frames to choose from.
        options: how to sample.
        rng: random numbers.
        anchor: a frame that must be among them; it takes the place of the nearest one chosen.

    Returns:
        Numbers of frames, increasing [F], int64.

    Raises:
        UserError: the anchor is not among the N frames, or there are none.
    """
    if count < 1:
        raise UserError("the clip has no frames, expected at least one")
    if anchor is not None and not 0 <= anchor < count:
        raise UserError(f"frame {anchor} must be taken, but the clip has frames 0 to {count - 1}: annotation and clip do not belong together")
    fewest, most = options.sample_frames
    wanted = int(rng.integers(fewest, most + 1))
    if count <= wanted:
        return np.arange(count)
    if options.sample_type == "uniform":
        chosen = sample_indices(count, wanted)
    else:
        edges = np.arange(0, count, (count - 1) / wanted)[: wanted + 1].round().astype(np.int64)
        chosen = rng.integers(edges[:-1], np.maximum(edges[:-1] + 1, edges[1:]))
    if anchor is not None:
        chosen[np.abs(chosen - anchor).argmin()] = anchor
    return chosen


def read_frames(media: FrameFiles | VideoFrames, options: DrawOptions, rng: np.random.Generator) -> tuple[Clip, tuple[int, ...]]:
    """Choose frames of a clip and read only these.

    Args:
        media: where the frames are.
        options: how to sample.
        rng: random numbers.

    Returns:
        The clip, and the numbers of its frames among those of the media that count, as ``MaskReader.read`` takes them.

    Raises:
        UserError: a file is missing or broken, frames differ in size, or the media asks for a frame that the video does not have.
    """
    if isinstance(media, FrameFiles):
        count = len(media.paths)
        chosen = np.arange(count) if media.take_all else choose_frames(count, options, rng)
        return _images([media.paths[i] for i in chosen], chosen)
    path = Path(media.path) if isinstance(media.path, str) else media.path
    if isinstance(path, tuple) or (isinstance(path, Path) and path.is_dir()):
        files: Sequence[Path | Content] = path if isinstance(path, tuple) else list_frames(path)
        counting = counting_frames(media, len(files))
        chosen = choose_frames(len(counting), options, rng, media.anchor)
        return _images([files[i] for i in counting[chosen]], chosen)
    if isinstance(path, Path) and not path.is_file():
        raise UserError(f"{path} does not exist: expected a video or a folder of frames")
    from unipixel_jax.processing.video import read_video  # PyAV is an extra, which photos do without

    chosen = np.zeros(0, np.int64)

    def choose(count: int) -> NDArray[np.int64]:
        nonlocal chosen
        counting = counting_frames(media, count)
        chosen = choose_frames(len(counting), options, rng, media.anchor)
        return counting[chosen]

    frames, _ = read_video(path, choose)
    return Clip(frames, chosen, False, path.stem), tuple(chosen.tolist())


def read_tracked(media: FrameFiles | VideoFrames, options: DrawOptions, rng: np.random.Generator) -> tuple[Clip, Clip | None, tuple[int, ...]]:
    """Choose frames of a clip as ``read_frames`` does, and read all of them for SAM where ``options.sample_for_llm_only``.

    Returns:
        The chosen frames; the frames that SAM sees, None where they are the same; and the numbers of SAM's frames among those of the media that count.

    Raises:
        UserError: as in ``read_frames``.
    """
    if not options.sample_for_llm_only or (isinstance(media, FrameFiles) and media.take_all):
        clip, indices = read_frames(media, options, rng)
        return clip, None, indices
    whole, indices = read_frames(media, replace(options, sample_frames=(_ALL, _ALL)), rng)
    chosen = choose_frames(len(indices), options, rng, media.anchor if isinstance(media, VideoFrames) else None)
    over_white = None if whole.over_white is None else whole.over_white[chosen]
    return replace(whole, frames=whole.frames[chosen], indices=chosen, over_white=over_white), whole, indices


def resize_masks(masks: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Masks at another size: true where an antialiased bilinear resize gives any share of a true pixel.

    Args:
        masks: bool [..., H, W].
        height: wanted, in pixels.
        width: wanted, in pixels.

    Returns:
        bool [..., height, width].
    """
    if masks.shape[-2:] == (height, width):
        return masks
    planes = masks.reshape(-1, *masks.shape[-2:])
    rows, columns = _reach(masks.shape[-2], height), _reach(masks.shape[-1], width)
    out = np.zeros((len(planes), height, width), bool)
    for plane, target in zip(planes, out, strict=True):
        # Objects are mostly small: what they do not touch is left out.
        down, across = _crop(plane.any(axis=1), rows), _crop(plane.any(axis=0), columns)
        if down is not None and across is not None:
            part = plane[down.inputs, across.inputs]
            target[down.outputs, across.outputs] = _spread(_spread(part, down.reach).T, across.reach).T
    return out.reshape(*masks.shape[:-2], height, width)


def square_masks(masks: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Masks at the size of SAM's square, bool [O, F, H, W] to bool [O, F, S, S], where every share of a true pixel counts."""
    return resize_masks(masks, side, side)


def counting_frames(media: VideoFrames, count: int) -> NDArray[np.int64]:
    """The numbers of the frames that count, of a video with ``count`` frames [N], int64."""
    if media.keep is None:
        return np.arange(0, count, media.stride)
    keep = np.asarray(media.keep, np.int64)
    if not len(keep) or keep.min() < 0 or keep.max() >= count or (np.diff(keep) <= 0).any():
        raise UserError(f"{media.path}: frames {list(media.keep)} are wanted, expected increasing numbers from 0 to {count - 1}, the frames of the video")
    return keep


def _images(paths: Sequence[str | Path | Content], chosen: NDArray[np.int64]) -> tuple[Clip, tuple[int, ...]]:
    clip = read_media(paths, None, upright=False)  # masks are drawn on the images as they are stored
    first = Path(str(paths[0]))
    name = first.stem if len(paths) == 1 else first.parent.name
    return Clip(clip.frames, chosen, len(paths) == 1, name, clip.over_white), tuple(chosen.tolist())


@lru_cache(maxsize=256)
def _reach(size: int, target: int) -> NDArray[np.int64]:
    """The pixels that have a share in each output along one axis [2, target]: the first of them, and the one past the last."""
    used = bilinear_weights(size, target) > 0
    return np.stack([used.argmax(axis=1), size - used[:, ::-1].argmax(axis=1)])


class _Crop(NamedTuple):
    """A part of an axis: some inputs, the outputs that they have a share in, and which of these inputs reach each output, as ``_reach`` gives them."""

    inputs: slice
    outputs: slice
    reach: NDArray[np.int64]


def _crop(marked: NDArray[np.bool_], reach: NDArray[np.int64]) -> _Crop | None:
    """The part of an axis from the first to the last marked input; None where nothing is marked."""
    found = np.flatnonzero(marked)
    if not len(found):
        return None
    first, end = int(found[0]), int(found[-1]) + 1
    outputs = np.flatnonzero((reach[0] < end) & (reach[1] > first))
    if not len(outputs):
        return None
    inside = np.clip(reach[:, outputs] - first, 0, end - first)
    return _Crop(slice(first, end), slice(int(outputs[0]), int(outputs[-1]) + 1), inside)


def _spread(plane: NDArray[np.bool_], reach: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any of the rows in reach is true, bool [H, W] to [target, W]."""
    first, end = reach
    out = plane[first]
    for step in range(1, int((end - first).max())):
        out |= plane[np.minimum(first + step, end - 1)]
    return out
