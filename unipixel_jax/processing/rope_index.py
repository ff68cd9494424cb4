"""Multimodal rotary positions: text advances time, row and column together, while each token of an image has its own time, row and column.

B prompts, L tokens. Source: ``Qwen2_5_VLModel.get_rope_index`` of transformers 4.53 (its rounding of ``second_per_grid_ts`` included), and
section 2.1 of the Qwen2.5-VL report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.errors import UserError


def rope_index(
    input_ids: ArrayLike,
    config: UniPixelConfig,
    *,
    image_grid_thw: ArrayLike | None = None,
    video_grid_thw: ArrayLike | None = None,
    second_per_grid_ts: Sequence[float] | NDArray[np.floating] | None = None,
    attention_mask: ArrayLike | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rotary positions of a padded batch of prompts.

    Args:
        input_ids: token ids [B, L], with one ``<|image_pad|>`` or ``<|video_pad|>`` per merged token.
        config: the model's sizes and token ids.
        image_grid_thw: patches of each image in time, height and width [images, 3], in the order of the prompts.
        video_grid_thw: the same for videos [videos, 3].
        second_per_grid_ts: seconds between a video's pairs of frames [videos], 1 where absent. As in the reference, a fraction is dropped before
            anything is multiplied, so below one second all pairs share one time.
        attention_mask: 1 where a token counts, 0 for padding on either side [B, L]; all count where absent.

    Returns:
        Positions in time, height and width [3, B, L], int32, 1 at padding; and for each prompt the number to add to an index from L on to get the
        position of a generated token [B], int32.

    Raises:
        UserError: the image tokens of the prompts do not fit the grids.
    """
    ids = np.asarray(input_ids)
    valid = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    images = np.asarray([] if image_grid_thw is None else image_grid_thw, np.int64).reshape(-1, 3)
    videos = np.asarray([] if video_grid_thw is None else video_grid_thw, np.int64).reshape(-1, 3)
    seconds = np.ones(len(videos)) if second_per_grid_ts is None else np.asarray(second_per_grid_ts, np.float64)
    grids = {
        config.image_token_id: iter([(grid, 0.0) for grid in images]),
        config.video_token_id: iter([(grid, np.trunc(s) * config.vision.tokens_per_second) for grid, s in zip(videos, seconds, strict=True)]),
    }
    positions = np.ones((3, *ids.shape), np.int32)
    deltas = np.zeros(len(ids), np.int32)
    for row in range(len(ids)):
        positions[:, row, valid[row]] = own = _prompt_positions(ids[row, valid[row]], row, grids, config)
        deltas[row] = own.max() + 1 - ids.shape[1]
    if any(next(rest, None) is not None for rest in grids.values()):
        raise UserError("there are more grids than images in the prompts: give one grid per <|vision_start|>")
    return positions, deltas


def _prompt_positions(
    tokens: NDArray[np.integer], row: int, grids: Mapping[int, Iterator[tuple[NDArray[np.int64], float]]], config: UniPixelConfig
) -> NDArray[np.int64]:
    """The positions of a prompt's tokens [3, tokens].

    Args:
        tokens: the prompt without padding [tokens].
        row: the prompt's number, for errors.
        grids: by image token, the grids that are still to come, each with its distance in time between two pairs of frames.
        config: the model's sizes and token ids.

    Raises:
        UserError: the prompt is empty, or its image tokens do not fit the grids.
    """
    if not tokens.size:
        raise UserError(f"prompt {row} of the batch is empty, expected at least one token")
    pieces: list[NDArray[np.int64]] = []
    done, start = 0, 0
    for first in _image_starts(tokens, config):
        grid, interval = next(grids[int(tokens[first])], (None, 0.0))
        if grid is None:
            raise UserError(f"prompt {row} has more images than there are grids: give one grid per <|vision_start|>")
        image = _image_positions(grid, config.vision.spatial_merge_size, interval)
        last = first + image.shape[1]
        if last > len(tokens) or np.any(tokens[first:last] != tokens[first]):
            raise UserError(f"prompt {row} has too few image tokens for the grid {grid.tolist()}: expected {image.shape[1]}")
        text = np.tile(np.arange(start, start + first - done), (3, 1))
        pieces += [text, image + start + first - done]
        start, done = int(pieces[-1].max()) + 1, last
    pieces.append(np.tile(np.arange(start, start + len(tokens) - done), (3, 1)))
    return np.concatenate(pieces, axis=1)


def _image_starts(tokens: NDArray[np.integer], config: UniPixelConfig) -> NDArray[np.intp]:
    after = np.flatnonzero(tokens[:-1] == config.vision_start_token_id) + 1
    return after[np.isin(tokens[after], (config.image_token_id, config.video_token_id))]


def _image_positions(grid: NDArray[np.int64], merge: int, interval: float) -> NDArray[np.int64]:
    time, height, width = np.indices((grid[0], grid[1] // merge, grid[2] // merge)).reshape(3, -1)
    return np.stack([np.trunc(time * interval).astype(np.int64), height, width])
