"""The replay of recordings through the programs of an export (docs/export.md) instead of our model: what the runtime computes is compared with the recording.

Cases that no program takes part in, such as those of training, are left out, and so are outputs that no program returns: of a prompt, the programs give what
is known at its last token and before each ``<|seg|>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.errors import UserError
from unipixel_jax.export.shapes import Shapes
from unipixel_jax.export.to_stablehlo import StableHloProgram
from unipixel_jax.export.write import PARTS, export
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.masks import resize_masks
from unipixel_jax.infer.prediction import Answer
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.recording import Case, Recording
from unipixel_jax.parity.replay import (
    MAX_NEW_TOKENS,
    Context,
    channels_last,
    clip_of,
    conversation_of,
    judge_scores,
    judge_track,
    judge_vision,
    told,
    vision_inputs,
)
from unipixel_jax.processing.batch import Conversation, measure
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.vision_index import vision_sizes
from unipixel_jax.runtime.backends import Backend
from unipixel_jax.runtime.session import BACKENDS, Runtime

RUNTIMES: Mapping[str, Backend] = {**BACKENDS, "stablehlo": StableHloProgram}
"""What runs the programs, by the names of ``--runtime``."""


@contextmanager
def opened(recording: Recording, loaded: LoadedModel, runtime: str, folder: Path | None) -> Iterator[Runtime]:
    """Open an export of a recording's model, with room for its cases; make it if the folder is not there or None is given, which means a temporary one.

    Raises:
        UserError: the folder holds an export of another model or without a part that is needed, or there is none for programs that are compiled elsewhere.
    """
    needed = tuple(dict.fromkeys(part for case in of_programs(recording) for part in KINDS[case.kind][1]))
    with TemporaryDirectory(prefix="unipixel-jax-parity-") as temporary:
        target = folder or Path(temporary) / "export"
        if not target.exists():
            if runtime == "acl":
                raise UserError("--runtime acl runs what ATC compiled: make an export by --runtime onnx --export FOLDER, run FOLDER/atc.sh, and name FOLDER")
            kind = "stablehlo" if runtime == "stablehlo" else "onnx"
            export(loaded, target, kind, room_for(recording, loaded), [part for part in PARTS if part in needed], platforms=("cpu",))
        made = Runtime.open(target, RUNTIMES[runtime])
        made.manifest.require(needed, "this recording")
        if made.config != loaded.config:
            raise UserError(f"{target} is an export of another model than {recording.root} records: name a folder that is not there, to have it made")
        yield made


def room_for(recording: Recording, loaded: LoadedModel) -> Shapes:
    """Return shapes with room for all cases of a recording that programs take part in."""
    context = Context(loaded, recording.root, recording.dtype != "float32")
    sizes, objects, new_tokens = dict[str, int](), 1, 1
    for case in of_programs(recording):
        if case.kind == "vision":
            found = vision_sizes(case.grid("grid_thw"), loaded.config.vision)
        elif case.kind in ("text", "multimodal", "generate", "e2e"):
            found = measure([[conversation] for conversation in _conversations(case, context)], loaded.config)
            new_tokens = max(new_tokens, _spoken(case))
            objects = max(objects, len(case.outputs.get("masks", ())))
        else:
            continue
        sizes = {name: max(size, sizes.get(name, 0)) for name, size in found.items()}
    return Shapes(objects, height=56, width=56, words=1, new_tokens=new_tokens, least=sizes | {"batch": 1})


def of_programs(recording: Recording) -> list[Case]:
    """Return the cases that programs take part in."""
    return [case for case in recording.cases if case.kind in KINDS and "adapter" not in case.options]


def vision(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare the vision tower."""
    padded, tables, places = vision_inputs(case, context, BUCKETS.fixed(runtime.manifest.sizes))
    found = runtime.run("vision", patches=padded, **vars(tables))
    return judge_vision(case, context, found["vision_tokens"][places], found["merger_input"][places])


def text(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare the language model: the first half of each row is read at once, the others are said one by one."""
    ours: dict[str, list[np.ndarray]] = {"hidden_before_norm": [], "logits": []}
    theirs: dict[str, list[np.ndarray]] = {name: [] for name in ours}
    ids, lengths = case.input("input_ids").astype(np.int32), case.input("attention_mask").astype(bool).sum(axis=1)
    for number, conversation in enumerate(_conversations(case, context)):
        reading, start, end = runtime.read(conversation), len(conversation.input_ids), int(lengths[number])
        for place in range(start, end + 1):
            ours["hidden_before_norm"].append(reading.state)
            ours["logits"].append(reading.logits)
            if place < end:
                reading.say(int(ids[number, place]))
        for name, value in case.outputs.items():
            theirs[name] += [*value[number, start - 1 : end]]
    return [compare.close(name, np.stack(ours[name]), np.stack(theirs[name]), context.hidden) for name in case.outputs]


def multimodal(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare what is known at the end of a prompt with vision tokens, references or memory features."""
    reading = runtime.read(conversation_of(case))
    ours = {"hidden_before_norm": reading.state, "logits": reading.logits, "seg_tokens": runtime.hidden_tokens(reading.state[None])[0]}
    return [compare.close(f"{name}[-1]", value, case.outputs[name][0, -1], context.hidden) for name, value in ours.items() if name in case.outputs]


def sam2_image(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare SAM 2's image encoder, one frame at a time."""
    found = [runtime.run("encode", frame=frame[None]) for frame in channels_last(case.input("frames"))]
    checks = []
    for level, name in enumerate(("high0", "high1", "low")):
        ours = np.concatenate([features[name] for features in found]).transpose(0, 3, 1, 2)
        checks.append(compare.close(f"fpn.{level}", ours, case.outputs[f"fpn.{level}"], context.sam))
    return checks


def sam2_video(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare tracking from recorded hidden tokens, frame by frame."""
    frames, hidden = clip_of(case)
    tokens = np.zeros((runtime.manifest.shapes["objects"], *hidden.shape[1:]), np.float32)
    tokens[:1] = hidden
    rows, grid = [], runtime.config.sam2.grid
    for number, out in enumerate(runtime.follow((frame[None] for frame in frames), tokens, len(frames))):
        memory, pointer = (out[f"next_{name}"][_slot(out[f"next_{name}_frame"], number), 0] for name in ("memory", "pointer"))
        rows.append((out["low_res"][0], pointer, out["presence"][:1], memory.reshape(grid, grid, -1).transpose(2, 0, 1)))
    names = ("low_res_masks", "obj_ptr", "object_score_logits", "memory_features")
    return judge_track(case, context, {name: np.stack(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})


def generate(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare greedy tokens and masks; of a recording in bfloat16, the programs' logits along the recorded answer."""
    conversation, theirs = conversation_of(case), case.outputs
    if context.reduced:
        return [_scores(conversation, context, runtime, theirs["tokens"])]
    answer = runtime.answer(conversation, case.number("max_new_tokens", MAX_NEW_TOKENS))
    frames = channels_last(case.input("frames"))
    masks = _masks(runtime, answer, [frame[None] for frame in frames], case.frame_size())
    return [compare.exact("tokens", np.asarray(answer.tokens), _without_end(theirs["tokens"], runtime)), compare.same_masks("masks", masks, theirs["masks"])]


def end_to_end(case: Case, context: Context, runtime: Runtime) -> list[Check]:
    """Compare tokens and masks of a media file and words."""
    theirs = case.outputs
    source, _, conversation = told(case, context)
    if context.reduced:
        return [_scores(conversation, context, runtime, theirs["tokens"])]
    answer = runtime.answer(conversation, case.number("max_new_tokens", MAX_NEW_TOKENS))
    frames = [frame.pixels for frame in source]
    side = runtime.config.sam2.image_size
    masks = _masks(runtime, answer, [square_frames(frame[None], side) for frame in frames], frames[0].shape[:2])
    return [
        compare.exact("tokens", np.asarray(answer.tokens), _without_end(theirs["tokens"], runtime)),
        compare.exact("response", np.asarray(answer.text == case.options["response"]), np.asarray(True)),
        compare.same_masks("masks", masks, theirs["masks"]),
    ]


WORDS, TRACKER = ("vision", "prefill", "step"), ("encode", "first_frame", "track")
KINDS: Mapping[str, tuple[Callable[[Case, Context, Runtime], list[Check]], tuple[str, ...]]] = {
    "vision": (vision, ("vision",)),
    "text": (text, WORDS),
    "multimodal": (multimodal, ("vision", "prefill", "prompt")),
    "sam2_image": (sam2_image, ("encode",)),
    "sam2_video": (sam2_video, TRACKER),
    "generate": (generate, (*WORDS, "prompt", *TRACKER)),
    "e2e": (end_to_end, (*WORDS, "prompt", *TRACKER)),
}
"""The replay of each kind of case, and the parts of an export that it runs."""


def _conversations(case: Case, context: Context) -> list[Conversation]:
    """Return what is read at once of a case."""
    if case.kind == "text":
        lengths = case.input("attention_mask").astype(bool).sum(axis=1)
        return [Conversation(ids[: length // 2].astype(np.int32), None) for ids, length in zip(case.input("input_ids"), lengths, strict=True)]
    return [told(case, context)[2] if case.kind == "e2e" else conversation_of(case)]


def _spoken(case: Case) -> int:
    """Return how many tokens of a case are said one by one."""
    if case.kind == "text":
        return int(case.input("attention_mask").shape[1]) // 2 + 1
    return case.number("max_new_tokens", MAX_NEW_TOKENS) if case.kind in ("generate", "e2e") else 1


def _scores(conversation: Conversation, context: Context, runtime: Runtime, tokens: np.ndarray) -> Check:
    """Compare the logits along a recorded answer."""
    reading = runtime.read(conversation)
    logits = [reading.logits]
    for token, _ in pairwise(tokens):
        reading.say(int(token))
        logits.append(reading.logits)
    return judge_scores(context, np.stack(logits), tokens)


def _masks(runtime: Runtime, answer: Answer, frames: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """Return the masks [O, F, h, w] of an answer's objects on normalised frames [1, S, S, 3]."""
    count = len(answer.hidden)
    if not count:
        return np.zeros((0, len(frames), *size), bool)
    found = runtime.follow(frames, runtime.hidden_tokens(answer.hidden), len(frames))
    return np.stack([resize_masks(out["low_res"][:count], (size[0], size[1])) > 0 for out in found], axis=1)


def _without_end(tokens: np.ndarray, runtime: Runtime) -> np.ndarray:
    return tokens[:-1] if tokens[-1] in runtime.manifest.end_tokens else tokens


def _slot(frames: np.ndarray, number: int) -> int:
    """Return the slot of the tracker's state that holds a frame of the first object."""
    return int(np.flatnonzero(frames[:, 0] == number)[0])
