"""Where the benchmarks' files lie below the data root, and what stands in them.

Source: the data sets' classes in UniPixel's ``unipixel/dataset/sub_classes/segmentation.py`` and ``.../evaluation/ref_sav.py``, and its scorers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.data.files import list_files, note_files, read_json
from unipixel_jax.data.sources.expressions import DAVIS, MEVIS, YOUTUBE
from unipixel_jax.data.sources.revos import LISTS as REVOS
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import sample_indices

REVOS_MASKS, REVOS_FOREGROUND = "revos/mask_dict.json", "revos/mask_dict_foreground.json"
GROUNDMORE, GROUNDMORE_FOLDER = "groundmore/test_v2.json", "groundmore/annotations"
GROUNDMORE_FRAMES = 20
"""Frames that are taken of each clip of GroundMoRe, spread evenly."""

LAYOUTS: Mapping[tuple[str, str], tuple[str, str | None, str]] = {
    ("revos", "valid"): (REVOS["valid"], REVOS_MASKS, "revos"),
    ("mevis", "valid_u"): MEVIS["valid_u"],
    ("mevis", "valid"): MEVIS["valid"],
    ("ref_youtube_vos", "valid"): YOUTUBE["valid"],
    ("ref_davis17", "valid"): DAVIS["valid"],
    ("ref_sav", "valid"): ("ref_sav/valid/meta_expressions_valid.json", "ref_sav/valid/mask_dict.json", "ref_sav/valid/videos"),
}
"""By benchmark and split, below the data root: the list of videos and expressions, the masks by number (None where they are not public), and the folder of
the videos.
"""


MVBENCH: Mapping[str, tuple[str, str]] = {
    "Episodic Reasoning": ("episodic_reasoning", "tvqa/frames_fps3_hq"),
    "Action Sequence": ("action_sequence", "star/Charades_v1_480"),
    "Action Prediction": ("action_prediction", "star/Charades_v1_480"),
    "Action Antonym": ("action_antonym", "ssv2_video"),
    "Fine-grained Action": ("fine_grained_action", "Moments_in_Time_Raw/videos"),
    "Unexpected Action": ("unexpected_action", "FunQA_test/test"),
    "Object Existence": ("object_existence", "clevrer/video_validation"),
    "Object Interaction": ("object_interaction", "star/Charades_v1_480"),
    "Object Shuffle": ("object_shuffle", "perception/videos"),
    "Moving Direction": ("moving_direction", "clevrer/video_validation"),
    "Action Localization": ("action_localization", "sta/sta_video"),
    "Scene Transition": ("scene_transition", "scene_qa/video"),
    "Action Count": ("action_count", "perception/videos"),
    "Moving Count": ("moving_count", "clevrer/video_validation"),
    "Moving Attribute": ("moving_attribute", "clevrer/video_validation"),
    "State Change": ("state_change", "perception/videos"),
    "Fine-grained Pose": ("fine_grained_pose", "nturgbd"),
    "Character Order": ("character_order", "perception/videos"),
    "Egocentric Navigation": ("egocentric_navigation", "vlnqa"),
    "Counterfactual Inference": ("counterfactual_inference", "clevrer/video_validation"),
}
"""MVBench's tasks, each with the name of its list of questions and the folder of its videos. Those of the first are folders of frames."""


@dataclass(frozen=True)
class Expression:
    """An expression about a video.

    Attributes:
        video: the video's name, which may have folders in it.
        number: the expression's name within the video.
        text: the words.
        frames: the names of the frames, without suffix.
        item: the entry of the list.
    """

    video: str
    number: str
    text: str
    frames: tuple[str, ...]
    item: Mapping[str, Any]


def list_expressions(root: Path, benchmark: str, split: str) -> list[Expression]:
    """The expressions of a video benchmark in the order of its file.

    Raises:
        UserError: the file is missing or broken.
    """
    found = []
    listed = root / LAYOUTS[benchmark, split][0]
    with naming_files(benchmark):
        for video, meta in read_json(listed)["videos"].items():
            frames = tuple(map(str, meta["frames"]))
            for number, item in meta["expressions"].items():
                found.append(Expression(video, number, str(item["exp"]).strip(), frames, item))
    if not found:
        raise UserError(f"{listed} has no expressions, expected at least one")
    return found


@dataclass(frozen=True)
class Question:
    """A question about a clip of GroundMoRe.

    Attributes:
        video: the clip's name.
        number: the question's name within the clip.
        text: the words, with a question mark at their end.
        frames: the frames that are taken.
        indices: their numbers among the clip's frames, by which masks are named; a short clip has some of them twice.
        objects: the numbers of the objects that answer it.
        kind: "Causal", "Sequential", "Counterfactual" or "Descriptive".
        span: the first and the last number of a frame on which the objects count.
        masks: the folder of label images.
    """

    video: str
    number: str
    text: str
    frames: tuple[Path, ...]
    indices: tuple[int, ...]
    objects: tuple[int, ...]
    kind: str
    span: tuple[int, int]
    masks: Path

    def name_of(self, index: int) -> str:
        """The name, without suffix, of the label image and of the prediction for the frame with a number."""
        return f"frame_{index:06d}" if self.frames[0].stem.startswith("frame_") else f"{index:07d}"

    def shown(self, most: int) -> Question:
        """The question about some of its frames, spread evenly."""
        places = sample_indices(len(self.frames), most).tolist()
        return replace(self, frames=tuple(self.frames[p] for p in places), indices=tuple(self.indices[p] for p in places))


def list_questions(root: Path) -> list[Question]:
    """The questions of GroundMoRe's test split, in the order of its file, about the clips that are there: some can no longer be had.

    Raises:
        UserError: the file is missing or broken, or no clip is there.
    """
    found = []
    with naming_files("groundmore"):
        for video, meta in read_json(root / GROUNDMORE)["videos"].items():
            folder = root / GROUNDMORE_FOLDER / video
            if not (folder / "images").is_dir():
                continue
            frames = sorted(list_files(folder / "images", ".jpg"), key=number_in)
            if not frames:
                raise UserError(f"{folder / 'images'} has no frames, expected JPEG files")
            indices = np.linspace(0, len(frames) - 1, num=GROUNDMORE_FRAMES, dtype=int).tolist()
            begin = _seconds(f"{video[-9:].split('_')[0][:2]}:{video[-9:].split('_')[0][2:]}")
            for number, item in meta["questions"].items():
                text = item["question"].strip()
                # The clips have 6 frames a second.
                span = (_seconds(item["action_start"]) - begin) * 6, (_seconds(item["action_end"]) - begin) * 6 - 1
                found.append(
                    Question(
                        video=video,
                        number=number,
                        text=text if text.endswith("?") else f"{text}?",
                        frames=tuple(frames[i] for i in indices),
                        indices=tuple(indices),
                        objects=tuple(int(o) for o in item["obj_id"].split(", ")),
                        kind=item["q_type"],
                        span=span,
                        masks=folder / "masks",
                    )
                )
    if not found:
        raise UserError(f"none of the clips that {root / GROUNDMORE} names is in {root / GROUNDMORE_FOLDER}: put the clips there")
    return found


def number_in(path: Path) -> int:
    """The number in a file's name, by which frames are put in order.

    Raises:
        UserError: there is none.
    """
    digits = re.search(r"\d+", path.stem)
    if digits is None:
        raise UserError(f"{path} has no number in its name, by which frames are put in order")
    return int(digits[0])


@contextlib.contextmanager
def naming_files(benchmark: str) -> Iterator[None]:
    """Turn what goes wrong with the content of files, which may be of any kind, into an error that names the file."""
    with note_files() as files:
        try:
            yield
        except UserError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            where = files[-1] if files else "the annotations"
            what = f"{error} is missing" if isinstance(error, KeyError) else f"something is of another kind ({error})"
            raise UserError(f"{where}: {what}; expected the annotations of {benchmark}: copy them again") from error


def _seconds(text: str) -> int:
    """The seconds of a time "MM:SS" or "HH:MM:SS"."""
    parts: Sequence[int] = [int(part) for part in text.split(":")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"the time {text!r}")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))
