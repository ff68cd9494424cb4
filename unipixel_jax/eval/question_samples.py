"""Samples that ask questions: about marked objects (VideoRefer-Bench, PixelQA), and about whole videos (MVBench, Video-MME).

O objects, F frames, H height, W width, S side of SAM's square. Sources: UniPixel's ``infer_videorefer_q.py``, ``infer_videorefer_d.py``, ``infer_pixelqa.py``
and ``infer_general.py`` in ``unipixel/eval``, and its data sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.files import list_files, read_json
from unipixel_jax.data.frames import choose_frames, square_masks
from unipixel_jax.data.regions import decode_regions
from unipixel_jax.data.tasks.multimodal import spread_frames
from unipixel_jax.errors import UserError, needing
from unipixel_jax.eval.layouts import MVBENCH, naming_files
from unipixel_jax.eval.metrics import score_volume
from unipixel_jax.eval.samples import ListSamples, Sample, Settings, choice_prompt, require_file, spoken
from unipixel_jax.infer.job_source import Job
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.processing.frames import FrameSource, hold_frames, open_files, open_frames
from unipixel_jax.processing.prompts import SquareReference
from unipixel_jax.processing.resize import FACTOR
from unipixel_jax.processing.tokenizer import REF_TOKEN, SEG_TOKEN

FOLDER = "videorefer/VideoRefer-Bench"
DESCRIBE = "Please give a detailed description of the highlighted object [0] in the video."
REGION_START, CHOICE_START = "The best option is (", "Best Option: ("
CHOICE_TOKENS = 256

STILLS = 32
"""Frames that are taken of a clip of MVBench that is a folder of frames."""

_OBJECT, _LISTED = re.compile(r"<object(\d+)>"), re.compile(r"<object(\d+)><region>")


@dataclass(frozen=True, eq=False)
class _Marked:
    """A clip with marked objects.

    Attributes:
        name: tells it from the others.
        video: path of the video.
        numbers: the frames that the model looks at, by their numbers in the video [F].
        prompted: the place of the frame on which the objects are pointed at, among these.
        objects: each object's regions by number of a frame, as the file has them [O].
        ids: the objects' numbers in the words [O].
        question: the words, in which the objects stand as ``[0]``.
        item: the entry of the file.
    """

    name: str
    video: Path
    numbers: tuple[int, ...]
    prompted: int
    objects: Sequence[Mapping[str, Any]]
    ids: tuple[int, ...]
    question: str
    item: Mapping[str, Any]

    def open(self) -> FrameSource:
        """The frames."""
        return hold_frames(open_frames(require_file(self.video), upright=False), self.numbers)

    def masks(self, single: bool, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The objects' masks on the frames, bool [O, F, H, W]; with ``single``, on the prompted one only."""
        shown = [number if not single or place == self.prompted else None for place, number in enumerate(self.numbers)]
        regions = [[[_region(own, number)] for number in shown] for own in self.objects]
        return decode_regions(regions, size, None, self.name)


def question_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """VideoRefer-Bench-Q: multiple choice about marked objects. Arguments as ``samples.ListSamples``."""
    found = []
    for clip in _list_marked(root, settings):
        job = partial(_region_job, clip, REGION_START, settings)
        found.append(Sample(clip.name, job, partial(_choice_record, clip)))
    return found


def description_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """VideoRefer-Bench-D: descriptions of a marked object. Arguments as ``samples.ListSamples``."""
    found = []
    with naming_files(benchmark):
        for number, item in enumerate(read_json(root / FOLDER / "VideoRefer-Bench-D.json")):
            clip = _marked(f"{number}", root / FOLDER / "videos/Panda-70M-part" / item["video"], DESCRIBE, (0,), item, settings)
            caption = str(item["caption"])

            def record(prediction: Prediction | None, clip: _Marked = clip, caption: str = caption) -> dict[str, Any]:
                said = {} if prediction is None else {"pred": prediction.text}
                return {"vid": clip.video.stem, "question": DESCRIBE, "caption": caption, **said}

            found.append(Sample(clip.name, partial(_region_job, clip, "", settings), record))
    return found


def pixelqa_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """PixelQA on VideoRefer-Bench-Q: objects are pointed at, segmented, and asked about. Arguments as ``samples.ListSamples``."""
    return [_pixelqa_sample(number, clip, settings) for number, clip in enumerate(_list_marked(root, settings))]


def mvbench_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """MVBench: multiple choice about videos, task by task. Arguments as ``samples.ListSamples``."""
    found = []
    with naming_files(benchmark):
        for task, (listed, folder) in MVBENCH.items():
            for number, item in enumerate(read_json(root / "mvbench/json" / f"{listed}.json")):
                video, options = root / "mvbench/video" / folder / item["video"], list(map(str, item["candidates"]))
                opened = partial(_open_stills if listed == "episodic_reasoning" else _open_video, video, settings)
                answer = {"answer": item["answer"], "ans": chr(ord("A") + options.index(item["answer"])), "task": task}
                found.append(_choice_sample(f"{listed}/{number}", video, opened, item["question"], options, answer, settings))
    return found


def videomme_samples(benchmark: str, split: str, root: Path, out: Path, settings: Settings) -> list[Sample]:
    """Video-MME: multiple choice about videos of three lengths. Arguments as ``samples.ListSamples``.

    Raises:
        UserError: pyarrow, which reads the table, is not installed; or the reasons of the others.
    """
    path = require_file(root / "videomme/test-00000-of-00001.parquet")
    with needing("eval", "reading Video-MME's table"):
        from pyarrow import ArrowException, parquet
    try:
        rows = parquet.read_table(path, columns=["videoID", "duration", "question", "options", "answer"]).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not a table of Video-MME ({error}): copy it again") from None
    found = []
    with naming_files(benchmark):
        for number, row in enumerate(rows):
            video = root / "videomme/videos_3fps_480_noaudio" / f"{row['videoID']}.mp4"
            options = [option[3:] for option in row["options"]]
            answer = {"answer": options["ABCD".index(row["answer"])], "ans": row["answer"], "task": row["duration"]}
            found.append(_choice_sample(f"{row['videoID']}/{number}", video, partial(_open_video, video, settings), row["question"], options, answer, settings))
    return found


def _list_marked(root: Path, settings: Settings) -> list[_Marked]:
    """The questions of VideoRefer-Bench-Q."""
    found = []
    with naming_files("videorefer_q"):
        for number, item in enumerate(read_json(root / FOLDER / "VideoRefer-Bench-Q.json")):
            text = item["Question"].strip()
            ids = tuple(map(int, _LISTED.findall(text)))
            if len(ids) != len(item["annotation"]):
                raise UserError(f"question {number} lists {len(ids)} objects for {len(item['annotation'])} marked ones: {text[:60]!r}; expected one each")
            question = _OBJECT.sub(r"[\1]", _LISTED.sub(r"[\1]", text))
            found.append(_marked(f"{number}", root / FOLDER / "videos" / item["video"], question, ids, item, settings))
    return found


def _marked(name: str, video: Path, question: str, ids: tuple[int, ...], item: Mapping[str, Any], settings: Settings) -> _Marked:
    """Choose the frames: those that are marked, or some of them spread evenly, the one to prompt on among them."""
    frames = sorted({int(number) for own in item["annotation"] for number in own})
    prompted = frames.index(int(item["frame_idx"]))
    options = DrawOptions((settings.sample_frames,) * 2, "uniform")
    places = choose_frames(len(frames), options, np.random.default_rng(0), prompted).tolist()
    if len(places) < 2:
        raise UserError(f"question {name} has {len(places)} marked frames, expected at least two")
    return _Marked(name, video, tuple(frames[p] for p in places), places.index(prompted), item["annotation"], ids, question, item)


def _region(marked: Mapping[str, Any], number: int | None) -> Any:
    return marked[str(number)]["segmentation"] if str(number) in marked else None


def _region_job(clip: _Marked, answer_start: str, settings: Settings) -> Job:
    """A question about objects that are marked by masks; one of multiple choice, which has smaller frames, where the answer is begun."""
    is_choice = bool(answer_start)
    prompt = choice_prompt(clip.question, clip.item["options"]) if is_choice else clip.question
    most = 144 * max(1, settings.sample_frames // len(clip.numbers))
    return Job(
        clip.open,
        prompt,
        id=clip.name,
        sample_frames=settings.sample_frames,
        answer_start=answer_start,
        remembered=partial(clip.masks, settings.single_frame),
        ids=clip.ids,
        min_pixels=100 * FACTOR**2 if is_choice else None,
        max_pixels=most * FACTOR**2 if is_choice else None,
        max_objects=0,
    )


def _choice_record(clip: _Marked, prediction: Prediction | None) -> dict[str, Any]:
    item = clip.item
    known = {"vid": clip.video.stem, "question": item["Question"], "options": item["options"], "ans": item["Answer"][1], "task": item["type"]}
    return {**known, "response": spoken(prediction, REGION_START)}


def _pixelqa_sample(number: int, clip: _Marked, settings: Settings) -> Sample:
    found: list[NDArray[np.bool_]] = []  # the masks of the first turn, for the second and for the record

    def locate() -> Job:
        found.clear()
        text = _OBJECT.sub(r"[\1]", _LISTED.sub(rf"[\1] {REF_TOKEN}", clip.item["Question"].strip()))
        text = "\n".join([f"{text}\nOptions:", *clip.item["options"]])
        return Job(
            clip.open,
            f"{text}. Please localize the relevant objects with IDs.",
            references=_point_at(number, clip, settings),
            id=clip.name,
            sample_frames=settings.sample_frames,
            given_answer=" ".join(f"[{own}] {SEG_TOKEN}" for own in clip.ids),
            max_objects=len(clip.ids),
        )

    def ask(prediction: Prediction) -> Job:
        found[:] = [item.masks for item in prediction.objects]
        # An object that was not found at all is remembered as being everywhere.
        known = np.stack([mask if mask.any() else np.ones_like(mask) for mask in found])
        return Job(
            clip.open,
            choice_prompt(clip.question, clip.item["options"]),
            id=clip.name,
            sample_frames=settings.sample_frames,
            answer_start=REGION_START,
            remembered=lambda size: known,
            ids=clip.ids,
            max_objects=0,
        )

    def record(prediction: Prediction | None) -> dict[str, Any]:
        if not found:
            scores = [(0.0, 0.0)] * len(clip.ids)
        else:
            scores = [score_volume(truth, own) for truth, own in zip(clip.masks(False, found[0].shape[1:]), found, strict=True)]
        return {**_choice_record(clip, prediction), "j_values": [j for j, _ in scores], "f_values": [f for _, f in scores]}

    return Sample(clip.name, locate, record, ask)


def _point_at(number: int, clip: _Marked, settings: Settings) -> list[SquareReference]:
    """A point or a box for each object, on the prompted frame."""
    rng = np.random.default_rng([0, number])
    count, kind = len(clip.ids), settings.prompt_type
    if kind == "mix":
        points = rng.permutation(count)[: round(count / 2)] if count > 1 else rng.permutation(2)[:1]
        kinds = ["point" if place in points else "box" for place in range(count)]
    else:
        kinds = [kind] * count
    regions = [_region(own, clip.numbers[clip.prompted]) for own in clip.objects]
    sizes = [tuple(region["size"]) for region in regions if region is not None]
    if not sizes:
        raise UserError(f"question {clip.name} has no object on its frame {clip.numbers[clip.prompted]}, expected at least one")
    masks = square_masks(decode_regions([[[region]] for region in regions], sizes[0], None, clip.name), settings.image_size)
    return [SquareReference(_centre(mask[0]) if own == "point" else _corners(mask[0]), clip.prompted) for mask, own in zip(masks, kinds, strict=True)]


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The pixel [1, 2] of a mask [S, S] that is farthest from its boundary; the first pixel where the mask is empty."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = divmod(int(np.argmax(distance)), mask.shape[1])
    return np.array([[x, y]], np.float32)


def _corners(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The box [2, 2] around a mask [S, S]; where it is empty, one that ends before it begins, as in the reference."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.array([mask.shape[::-1], (-1, -1)], np.float32)
    return np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float32)


def _choice_sample(
    name: str, video: Path, opened: Callable[[], FrameSource], question: str, options: Sequence[str], answer: Mapping[str, Any], settings: Settings
) -> Sample:
    """A multiple-choice question about a video."""
    words = re.sub(r"\s+", " ", question).strip()
    listed = [f"({chr(ord('A') + place)}) {option[:1].upper()}{option[1:]}" for place, option in enumerate(options)]

    def job() -> Job:
        return Job(
            opened,
            choice_prompt(words, listed),
            id=name,
            sample_frames=max(settings.sample_frames, STILLS),
            answer_start=CHOICE_START,
            max_new_tokens=CHOICE_TOKENS,
            min_pixels=128 * FACTOR**2,
            max_pixels=256 * FACTOR**2,
            max_objects=0,
        )

    def record(prediction: Prediction | None) -> dict[str, Any]:
        return {"vid": video.stem, "question": words, "options": list(options), **answer, "response": spoken(prediction, CHOICE_START)}

    return Sample(name, job, record)


def _open_video(video: Path, settings: Settings) -> FrameSource:
    """Two frames a second of a video, from 4 to ``sample_frames``."""
    source = open_frames(require_file(video), upright=False)
    if source.rate is None:
        raise UserError(f"{video} does not tell how many frames a second it has: expected a video file")
    numbers = spread_frames(len(source), source.rate, settings.sample_frames)
    return hold_frames(source, numbers.tolist(), seconds_per_frame=len(source) / source.rate / len(numbers))


def _open_stills(folder: Path, settings: Settings) -> FrameSource:
    """At most 32 frames of a folder, a fixed number of frames apart."""
    count = len(list_files(folder, ".jpg"))
    step = count // (STILLS - 1)
    if step < 1:
        raise UserError(f"{folder} has {count} frames, expected at least {STILLS - 1}")
    return open_files([folder / f"{number:05d}.jpg" for number in range(1, count + 1, step)][:STILLS], folder.name, upright=False)


SAMPLES: Mapping[str, ListSamples] = {
    "videorefer_q": question_samples,
    "videorefer_d": description_samples,
    "pixelqa": pixelqa_samples,
    "mvbench": mvbench_samples,
    "videomme": videomme_samples,
}
