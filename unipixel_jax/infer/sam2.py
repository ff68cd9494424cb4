"""SAM 2.1 as people use it without a language model: points, boxes and masks in, masks out.

N objects that are asked for together, P points, M masks of each, g side of the feature grid, S = 16 g side of the model's square image, H and W height and
width of the picture. Source: facebookresearch/sam2, sam2/sam2_image_predictor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.core.programs import Programs, packed
from unipixel_jax.errors import UserError
from unipixel_jax.infer.masks import resize_masks
from unipixel_jax.infer.sam2_loading import load_sam2
from unipixel_jax.infer.sam2_session import Sam2Session
from unipixel_jax.infer.segmentation import encoded
from unipixel_jax.infer.tracking import LOGITS
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.tracker import Prompt, Sam2
from unipixel_jax.processing.media import Media, read_media
from unipixel_jax.processing.square import square_frames

POINTS = Buckets("points of a prompt", 4, 2.0, 1024)
UNUSED = -2
"""The label of a place in the array of points where there is none."""


class EncodedImage(NamedTuple):
    """What the model sees of a picture: its features, each array [1, ...], and the picture's (height, width)."""

    features: FrameFeatures
    size: tuple[int, int]


class ImageMasks(NamedTuple):
    """The masks of N objects.

    Attributes:
        masks: [N, M, H, W] booleans; M is 3 with ``multimask`` and else 1.
        iou: [N, M] float32, the predicted intersection over union of each mask.
        low_res: [N, M, 4g, 4g] float32 logits within -32 and 32, for ``mask_input``.
        presence: [N] float32 logits, positive where the model finds the object in the picture. The masks do not depend on it.
    """

    masks: NDArray[np.bool_]
    iou: NDArray[np.float32]
    low_res: NDArray[np.float32]
    presence: NDArray[np.float32]


@dataclass(frozen=True)
class Sam2Predictor:
    """SAM 2.1, ready to segment.

    Attributes:
        sam2: the weights.
    """

    sam2: Sam2

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: DTypeLike = "float32", image_size: int | None = None, *, revision: str | None = None, token: str | None = None
    ) -> Sam2Predictor:
        """Load SAM 2.1; arguments and errors are those of ``load_sam2``."""
        return cls(load_sam2(path, dtype, image_size, revision=revision, token=token))

    @cached_property
    def _packed(self) -> Sam2:
        return packed(self.sam2)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weights, in which the model computes."""
        return jnp.dtype(self.sam2.no_mem_embed[...].dtype)

    def encode(self, image: Media) -> EncodedImage:
        """Look at a picture once, for any number of prompts.

        Args:
            image: a path, an image, or an array [H, W, 3] of uint8.

        Raises:
            UserError: it cannot be read, or is a clip.
        """
        clip = read_media(image, None)
        if len(clip.frames) != 1:
            raise UserError(f"{len(clip.frames)} frames, expected one image: take one of them, or track objects through the clip")
        square = square_frames(clip.frames, self.sam2.config.image_size)
        return EncodedImage(next(encoded(self.sam2, square, self.dtype, size=1)), clip.frames.shape[1:3])

    def segment(
        self,
        image: Media | EncodedImage,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask: bool = True,
    ) -> ImageMasks:
        """Segment objects of a picture by points, boxes, masks of an earlier answer, or all of them together.

        Args:
            image: see ``encode``, or what that returned.
            points: (x, y) in pixels of the picture, [P, 2], or [N, P, 2] for N objects.
            labels: [P] or [N, P]; 1 for a point on the object, 0 for one beside it, -1 to fill a row.
            box: left, top, right and bottom in pixels, [4] or [N, 4].
            mask_input: logits [4g, 4g] or [N, 4g, 4g] of ``low_res``.
            multimask: return three masks, which is better where the prompt can mean several objects, as one point does; else one, which is made for
                clear prompts. An unclear one gets the best of the three.

        Returns:
            The masks, IoUs and low-resolution logits.

        Raises:
            UserError: there is no prompt, its arrays do not fit together, or a number is none.
        """
        seen = image if isinstance(image, EncodedImage) else self.encode(image)
        config = self.sam2.config
        side = 4 * config.grid
        coords, kinds = _points(points, labels, box)
        logits = None if mask_input is None else _numbers("mask_input", mask_input, (side, side))
        counts = {len(array) for array in (*coords, logits) if array is not None}
        if len(counts) != 1:
            asked = " and ".join(map(str, sorted(counts))) or "no"
            raise UserError(f"prompts of {asked} objects: expected points, boxes or masks, of as many objects each")
        (count,) = counts
        # without points both arrays are empty
        xy = np.concatenate([np.zeros((count, 0, 2), np.float32), *coords], axis=1) / np.asarray(seen.size[::-1], np.float32) * np.float32(config.image_size)
        kind = np.concatenate([np.zeros((count, 0), np.int32), *kinds], axis=1)
        unused, more = POINTS.size(xy.shape[1]) - xy.shape[1], BUCKETS.objects.size(count) - count
        xy, kind = np.pad(xy, ((0, more), (0, unused), (0, 0))), np.pad(kind, ((0, more), (0, unused)), constant_values=UNUSED)
        given = np.zeros((count + more, side, side), np.float32)
        given[:count] = 0 if logits is None else logits
        found = _predict(self._packed, seen.features, *jax.device_put((xy, kind, given, np.asarray(logits is not None))))
        low_res, iou, presence, answer = (np.asarray(array)[:count] for array in found)
        chosen = np.broadcast_to(np.arange(1, 4), (count, 3)) if multimask else answer[:, None]
        low_res = np.take_along_axis(low_res, chosen[..., None, None], axis=1)
        masks = resize_masks(low_res, seen.size) > 0
        return ImageMasks(masks, np.take_along_axis(iou, chosen, axis=1), np.clip(low_res, -LOGITS, LOGITS), presence)


    def track(self, media: Media, *, non_overlapping: bool = False, fill_holes: int = 0) -> Sam2Session:
        """Begin to annotate a clip, whose frames are held in memory.

        Args:
            media: a video, a folder of frames, an array [F, H, W, 3] of uint8 or a sequence of images.
            non_overlapping: whether each pixel belongs to one object at most.
            fill_holes: the largest number of pixels, in masks of a quarter of the model's side, of a hole that is filled; the reference fills 8 on CUDA.

        Raises:
            UserError: it cannot be read, or has too many pixels to be held.
        """
        return Sam2Session(self.sam2, self.dtype, read_media(media, None), non_overlapping=non_overlapping, fill_holes=fill_holes)


def _points(points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int32]]]:
    """Return arrays of points [N, P, 2] in pixels of the picture, and of their labels [N, P]: the corners of boxes, then points, as far as they are given."""
    coords, kinds = [], []
    if box is not None:
        corners = _numbers("box", box, (4,)).reshape(-1, 2, 2)
        coords.append(corners)
        kinds.append(np.broadcast_to(np.asarray([2, 3], np.int32), corners.shape[:2]))
    if (points is None) != (labels is None):
        raise UserError(f"{'labels' if points is None else 'points'} alone: give points and labels together")
    if points is not None:
        xy, kind = _numbers("points", points, (None, 2)), _numbers("labels", labels, (None,))
        if xy.shape[:2] != kind.shape or not np.isin(kind, (-1, 0, 1)).all():
            raise UserError(f"labels {list(kind.shape)} of points {list(xy.shape)}: expected one for each point, 1 on the object, 0 beside it, -1 for none")
        coords.append(xy)
        kinds.append(kind.astype(np.int32))
    return coords, kinds


def _numbers(name: str, value: Any, inner: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Return an argument as a float32 array [N, *inner], where None is any length; it may come without N, which is 1 then.

    Raises:
        UserError: it has another shape, or holds something that is no finite number.
    """
    expected = "[" + ", ".join("P" if length is None else str(length) for length in inner) + "]"
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} is no array of numbers: expected {expected}, or one of these for each object") from None
    array = array[None] if array.ndim == len(inner) else array
    fits = array.ndim == len(inner) + 1 and all(length in (None, own) for length, own in zip(inner, array.shape[1:], strict=True))
    if not fits or not array.size or not np.isfinite(array).all():
        what = f"{list(array.shape)}" if not fits or not array.size else "not finite"
        raise UserError(f"{name} is {what}: expected finite numbers {expected}, or those of each object")
    return array


@Programs
def _predict(
    sam2: Sam2, features: FrameFeatures, coords: jax.Array, labels: jax.Array, logits: jax.Array, has_logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return four masks [N, 4, 4g, 4g] of each object, their IoUs [N, 4], object scores [N], and which of the four is the answer to who wants one [N]."""
    one = jnp.ones(len(coords), bool)
    prompt = Prompt(sam2.prompt_encoder.points(coords, labels), labels != UNUSED, logits, has_logits & one, one)
    decoded, answer = sam2.predict(features, prompt)
    return decoded.masks, decoded.iou, decoded.object_score, answer
