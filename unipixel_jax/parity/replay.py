"""The replay of each kind of case: our model runs on the recorded inputs, and its outputs are compared with the recorded ones.

Our model computes in float32, whatever the recording's dtype. O objects, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unipixel_jax.batch import ModelInputs, VisionTables
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.errors import UserError
from unipixel_jax.infer.generate import Generation, generate
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.masks import resize_masks
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.infer.segmentation import clip_logits, encoded
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.models.sam2.neck import FrameFeatures
from unipixel_jax.models.sam2.position import sine_grid
from unipixel_jax.models.sam2.track_state import TrackState
from unipixel_jax.models.sam2.tracker import Sam2, TrackOutput
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.parity import compare
from unipixel_jax.parity.compare import Check
from unipixel_jax.parity.gradients import compare_gradients, trace_gradients
from unipixel_jax.parity.recording import Case, inside
from unipixel_jax.parity.training import compare_steps
from unipixel_jax.processing import batch
from unipixel_jax.processing.chat import chatml_labels
from unipixel_jax.processing.frames import FrameSource, open_frames
from unipixel_jax.processing.prompts import SquareReference
from unipixel_jax.processing.resize import smart_resize
from unipixel_jax.processing.rope_index import rope_index
from unipixel_jax.processing.square import square_frames
from unipixel_jax.processing.vision_index import build_vision_index, place_patches, reference_order

F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
MAX_FRAMES, MAX_NEW_TOKENS = 128, 4096
"""The most frames of a recorded clip, and the most tokens of a recorded answer, that are accepted."""
ARGMAX_MARGIN = 4
"""In bfloat16, two logits may exchange their order if they lie within this many errors of a logit of each other."""


@dataclass(frozen=True)
class Context:
    """What a case needs besides its tensors.

    Attributes:
        loaded: the converted model and its tokenizer.
        root: the recording's folder, for media.
        reduced: whether the reference ran in bfloat16.
        adapters: those that the model has in all of the recording's cases of training, with weights of zero where a case has none; None for none.
        objects: as many objects as clips with fewer are tracked with, so that they share programs.
    """

    loaded: LoadedModel
    root: Path
    reduced: bool
    adapters: LoraConfig | None = None
    objects: int = 0

    @property
    def hidden(self) -> float:
        """The bound on relative errors of the vision tower and the language model."""
        return compare.BF16_HIDDEN if self.reduced else compare.FORWARD

    @property
    def sam(self) -> float:
        """The bound on relative errors of SAM's outputs on one frame."""
        return compare.BF16_SAM if self.reduced else compare.FORWARD


def vision(case: Case, context: Context) -> list[Check]:
    """Compare the vision tower: its tokens, and the merger's input in raster order and in window order."""
    padded, tables, places = vision_inputs(case, context)
    tokens, merger_input = _vision(context.loaded.model, padded, jax.device_put(tables))
    return judge_vision(case, context, np.asarray(tokens)[places], np.asarray(merger_input)[places])


def judge_vision(case: Case, context: Context, tokens: np.ndarray, merger_input: np.ndarray) -> list[Check]:
    """Compare vision tokens [M, D] and what the merger was given for each [M, E] with the recorded ones."""
    order = reference_order(case.grid("grid_thw"), context.loaded.config.vision)
    ours = {"embeds": tokens, "merger_input": merger_input, "merger_input_window_order": merger_input[order]}
    return [compare.close(name, ours[name], value, context.hidden) for name, value in case.outputs.items()]


def text(case: Case, context: Context) -> list[Check]:
    """Compare the language model on right-padded rows; padding is not compared."""
    ids, valid = case.input("input_ids").astype(np.int32), case.input("attention_mask").astype(bool)
    positions, _ = rope_index(ids, context.loaded.config, attention_mask=valid)

    hidden, logits = (np.asarray(a) for a in _text(context.loaded.model, ids, positions, valid.astype(np.int32)))
    ours = {"hidden_before_norm": hidden, "logits": logits}
    return [compare.close(name, ours[name][valid], value[valid], context.hidden) for name, value in case.outputs.items()]


def multimodal(case: Case, context: Context) -> list[Check]:
    """Compare one forward pass on a prompt with vision tokens, references or memory features."""
    inputs = model_inputs(case, context)
    length = case.input("input_ids").shape[1]
    names = ("hidden_before_norm", "logits", "seg_tokens")
    placed = jax.device_put(inputs)
    ours = dict(zip(names, (np.asarray(a)[:, -length:] for a in _language(context.loaded.model, placed)), strict=True))
    bounds = dict.fromkeys(names, context.hidden)
    if context.reduced:
        # Some models amplify rounding more than others (an adapter doubled it), so the bound follows from how far bfloat16 moves our own outputs.
        rounded = (np.asarray(a, np.float32)[:, -length:] for a in _language(context.loaded.model, placed, BF16))
        bounds = {n: max(context.hidden, 1.5 * compare.close(n, r, ours[n], 0).relative_error) for n, r in zip(names, rounded, strict=True)}
    integers = {
        "position_ids": inputs.position_ids[:, :, -length:],
        "rope_deltas": (inputs.rope_deltas + inputs.input_ids.shape[1] - length)[:, None],
    }
    return [
        compare.exact(name, integers[name], value) if name in integers else compare.close(name, ours[name], value, bounds[name])
        for name, value in case.outputs.items()
    ]


def rope(case: Case, context: Context) -> list[Check]:
    """Compare the rotary positions of prompts with images and videos."""
    checks = []
    for suffix in ("", "_b"):
        optional = {name: case.grid(name + suffix) for name in ("image_grid_thw", "video_grid_thw") if case.has_input(name + suffix)}
        if case.has_input("second_per_grid_ts" + suffix):
            optional["second_per_grid_ts"] = case.input("second_per_grid_ts" + suffix)
        positions, deltas = rope_index(case.input("input_ids" + suffix), context.loaded.config, **optional)
        checks.append(compare.exact("position_ids" + suffix, positions, case.outputs["position_ids" + suffix]))
        checks.append(compare.exact("rope_deltas" + suffix, deltas[:, None], case.outputs["rope_deltas" + suffix]))
    return checks


def sam2_image(case: Case, context: Context) -> list[Check]:
    """Compare SAM 2's image encoder and its position encodings."""
    sizes = context.loaded.config.sam2
    rows = [(own.high0, own.high1, own.low) for own in encoded(context.loaded.model.sam2, channels_last(case.input("frames")), F32)]
    ours = {f"fpn.{i}": np.concatenate(level).transpose(0, 3, 1, 2) for i, level in enumerate(zip(*rows, strict=True))}
    ours |= {f"pos.{i}": sine_grid(sizes.grid * 4 // 2**i, sizes.d_model).transpose(2, 0, 1)[None] for i in range(3)}
    return [compare.close(name, ours[name], value, context.sam) for name, value in case.outputs.items()]


def sam2_video(case: Case, context: Context) -> list[Check]:
    """Compare tracking from recorded hidden tokens, frame by frame as a stream of known length."""
    return judge_track(case, context, track(case, context.loaded.model))


def judge_track(case: Case, context: Context, ours: dict[str, np.ndarray]) -> list[Check]:
    """Compare what was computed of a clip, laid out as ``track`` returns it, with what was recorded."""
    size, model, theirs = case.frame_size(), context.loaded.model, case.outputs
    frames, hidden = clip_of(case)
    low_res, score = ours["low_res_masks"], ours["object_score_logits"]
    ours["memory_features"] = ours["memory_features"][: len(theirs["memory_features"])]
    masks = np.asarray(resize_masks(low_res, size) > 0)
    theirs = theirs | {"low_res_masks": theirs["low_res_masks"][0]}
    if not context.reduced:
        scores = compare.close_scores("object_score_logits", ours.pop("object_score_logits"), theirs["object_score_logits"], context.sam)
        checks = [compare.close_per_frame(name, value, theirs[name], context.sam) for name, value in ours.items()]
        return [*checks, scores, compare.same_masks("masks", masks, theirs["masks"])]
    # In bfloat16 the tracking of a random model drifts apart. So outputs are compared on the first frame, and on all others only whether the object is there.
    first = next(encoded(model.sam2, frames[:1], BF16))
    rounded_state, rounded = _step(model, model.sam2.start(1, BF16, len(frames)), first, hidden.astype(BF16))
    moved = {"low_res_masks": np.asarray(rounded.low_res)[0], "obj_ptr": np.asarray(rounded.pointer)[0], "object_score_logits": rounded.decoded.object_score}
    moved["memory_features"] = _memory_of(rounded_state, 0, model.sam2)
    checks = []
    for name, value in ours.items():
        measure = compare.close_scores if name == "object_score_logits" else compare.close
        bound = max(context.sam, 1.5 * measure(name, np.asarray(moved[name], np.float32), value[0], 0).relative_error)
        checks.append(measure(f"{name}[0]", value[0], theirs[name][0], bound))
    # Rounding decides the sign of a score near zero, so such scores are not compared.
    decided = np.abs(theirs["object_score_logits"]) > 2 * context.sam
    return [*checks, compare.exact("object present", (score > 0)[decided], (theirs["object_score_logits"] > 0)[decided])]


def track(case: Case, model: UniPixelModel) -> dict[str, np.ndarray]:
    """Return what our model computes, in float32, of each frame of a case of the kind ``sam2_video``.

    Returns:
        Under the names of the recorded outputs, F frames first: low_res_masks [F, 4g, 4g], obj_ptr [F, D], object_score_logits [F, 1] and memory_features
        [F, channels, g, g], for SAM's grid of g by g.
    """
    frames, hidden = clip_of(case)
    state = model.sam2.start(1, F32, len(frames))
    rows = []
    for number, features in enumerate(encoded(model.sam2, frames, F32)):
        state, out = _step(model, state, features, hidden)
        rows.append((np.asarray(out.low_res)[0], np.asarray(out.pointer)[0], np.asarray(out.decoded.object_score), _memory_of(state, number, model.sam2)))
    names = ("low_res_masks", "obj_ptr", "object_score_logits", "memory_features")
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def generated(case: Case, context: Context) -> list[Check]:
    """Compare greedy tokens, and the masks of every `<|seg|>`, those of the prompt first; of a recording in bfloat16, our logits along the recorded answer."""
    loaded, theirs = context.loaded, case.outputs
    conversation, size = conversation_of(case), case.frame_size()
    if context.reduced:
        return [_compare_scores(conversation, context, theirs["tokens"])]
    inputs = batch.collate([conversation], loaded.config, loaded.tokenizer.pad_id)
    limit = case.number("max_new_tokens", MAX_NEW_TOKENS)
    answer = generate(
        loaded.model,
        jax.device_put(inputs),
        jax.random.key(0),
        jnp.asarray(limit, jnp.int32),
        new_token_slots=limit,
        end_tokens=loaded.end_tokens,
        dtype=F32,
    )
    tokens = np.asarray(answer.tokens)[0, : int(np.asarray(answer.count)[0])]
    hidden = _seg_hidden(answer, inputs, tokens, loaded.config.seg_token_id)
    enough = np.resize(hidden, (max(len(hidden), context.objects), hidden.shape[1])) if len(hidden) else hidden
    logits = clip_logits(loaded.model, channels_last(case.input("frames")), enough, F32).low_res[:, : len(hidden)]
    masks = np.asarray(resize_masks(np.asarray(logits).swapaxes(0, 1), size) > 0)
    return [compare.exact("tokens", tokens, theirs["tokens"]), compare.same_masks("masks", masks, theirs["masks"])]


def end_to_end(case: Case, context: Context) -> list[Check]:
    """Compare the whole path from a media file and words to tokens and masks.

    SAM looks at the sampled frames, as in the reference's ``tools/inference.py``; in a case with ``every_frame`` at all frames of the clip, as in
    ``unipixel/eval/infer_seg.py``.
    """
    loaded, options = context.loaded, case.options
    source, media, conversation = told(case, context)
    squares = square_frames(np.stack([frame.pixels for frame in islice(source, 0, None, 3)]), loaded.config.sam2.image_size)
    theirs = case.outputs
    rendered = loaded.tokenizer.render(batch.user_turn(options["prompt"]), add_generation_prompt=True)
    checks = [
        compare.exact("text", np.asarray(rendered == options["text"]), np.asarray(True)),
        compare.exact("input_ids", conversation.input_ids, case.input("input_ids")[0]),
        compare.exact("video_grid_thw", np.asarray([media.grid_thw]), theirs["video_grid_thw"]),
        compare.close("pixel_values", media.patches[::41], theirs["pixel_values_videos_every_41st_row"], context.hidden),
        compare.close("frames", squares.transpose(0, 3, 1, 2), theirs["frames_every_3rd"], context.hidden),
    ]
    if context.reduced:
        return [*checks, _compare_scores(conversation, context, theirs["tokens"])]
    frames, limit = case.number("sample_frames", MAX_FRAMES), case.number("max_new_tokens", MAX_NEW_TOKENS)
    found = UniPixel(loaded).segment(source, options["prompt"], sample_frames=frames, max_new_tokens=limit)
    masks = np.stack([item.masks for item in found.objects]) if found.objects else np.zeros((0, len(source), *found.size), bool)
    spoken = theirs["tokens"][:-1] if theirs["tokens"][-1] in loaded.end_tokens else theirs["tokens"]
    return [
        *checks,
        compare.exact("tokens", np.asarray(found.tokens), spoken),
        compare.exact("response", np.asarray(found.text == options["response"]), np.asarray(True)),
        compare.same_masks("masks", masks, theirs["masks"]),
    ]


def told(case: Case, context: Context) -> tuple[FrameSource, batch.PreparedMedia, batch.Conversation]:
    """Return the frames that SAM looks at in a case of the kind ``e2e``, the frames that the language model looks at, and the conversation about them.

    Raises:
        UserError: the clip is too long.
    """
    options, count = case.options, case.number("sample_frames", MAX_FRAMES)
    source = open_frames(inside(context.root, options["media"]))
    clip = source.sample(count)
    if not options.get("every_frame"):
        source = open_frames(clip)
    if len(source) > MAX_FRAMES:
        raise UserError(f"{case.name}: {options['media']} has {len(source)} frames, expected at most {MAX_FRAMES}: record it again, or copy it again")
    media = batch.prepare_media(clip, context.loaded.config, sample_frames=count, segment=False)
    return source, media, batch.prepare_conversation(batch.user_turn(options["prompt"]), media, context.loaded.tokenizer, context.loaded.config)


def resized(case: Case, context: Context) -> list[Check]:
    """Compare the sizes to which images are resized for the vision tower."""
    ours = [smart_resize(*(int(n) for n in row)) for row in case.input("hw_min_max")]
    return [compare.exact("hw", np.asarray(ours), case.outputs["hw"])]


def labels(case: Case, context: Context) -> list[Check]:
    """Compare the labels of a conversation, which say what tokens are trained on."""
    tokenizer = context.loaded.tokenizer
    rendered = tokenizer.render(case.options["messages"], add_generation_prompt=False).rstrip("\n")
    ids, ours = chatml_labels(rendered, tokenizer)
    return [
        compare.exact("text", np.asarray(rendered == case.options["text"]), np.asarray(True)),
        compare.exact("input_ids", ids, case.input("input_ids")),
        compare.exact("labels", ours, case.outputs["labels"]),
    ]


def trace_training(case: Case, context: Context) -> None:
    """Trace the program of a case of training, which is then compiled when the case is replayed."""
    trace_gradients(case, context.loaded, model_inputs(case, context), context.adapters)


def train_loss(case: Case, context: Context) -> list[Check]:
    """Compare losses, and the gradient of every trained tensor under its torch name."""
    return compare_gradients(case, context.loaded, model_inputs(case, context), context.adapters)


def train_steps(case: Case, context: Context) -> list[Check]:
    """Compare some steps of training: their losses, and the change of every trained tensor."""
    return compare_steps(case, context.loaded, model_inputs(case, context), context.adapters)


KINDS: Mapping[str, Callable[[Case, Context], list[Check]]] = {
    "vision": vision,
    "text": text,
    "multimodal": multimodal,
    "rope_index": rope,
    "sam2_image": sam2_image,
    "sam2_video": sam2_video,
    "generate": generated,
    "train_loss": train_loss,
    "train_steps": train_steps,
    "e2e": end_to_end,
    "smart_resize": resized,
    "chatml_labels": labels,
}
"""The replay of each kind of case."""


@jax.jit
def _vision(model: UniPixelModel, patches: jax.Array, tables: VisionTables) -> tuple[jax.Array, jax.Array]:
    return model.vision(patches, tables)


@jax.jit
def _text(model: UniPixelModel, ids: jax.Array, positions: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = model.text(model.text.embed(ids, F32), positions, segments)
    return hidden, model.text.logits(hidden)


@partial(jax.jit, static_argnames="dtype")
def _language(model: UniPixelModel, inputs: ModelInputs, dtype: jnp.dtype = F32) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden = model.text(model.embed(inputs, dtype), inputs.position_ids, inputs.segments)
    return hidden, model.text.logits(hidden), model.seg_head(hidden)


@jax.jit
def _step(model: UniPixelModel, state: TrackState, features: FrameFeatures, hidden: jax.Array) -> tuple[TrackState, TrackOutput]:
    return model.sam2.step(state, features, hidden)


def channels_last(frames: np.ndarray) -> np.ndarray:
    """Return recorded frames [F, 3, S, S] of any dtype as our model takes them: [F, S, S, 3], float32."""
    return np.ascontiguousarray(frames.astype(np.float32).transpose(0, 2, 3, 1))


def clip_of(case: Case) -> tuple[np.ndarray, jax.Array]:
    """Return the frames [F, S, S, 3] and the object's hidden tokens [1, H, D] of a recorded clip."""
    return channels_last(case.input("frames")), jax.device_put(case.input("hidden"))


def _memory_of(state: TrackState, frame: int, sam2: Sam2) -> np.ndarray:
    """Return the first object's memory of a frame as the reference lays it out: [channels, grid, grid]."""
    slot = int(np.flatnonzero(np.asarray(state.memory_frame)[:, 0] == frame)[0])
    return np.asarray(state.memory)[slot, 0].reshape(sam2.config.grid, sam2.config.grid, -1).transpose(2, 0, 1)


def conversation_of(case: Case) -> batch.Conversation:
    """Return the recorded inputs of a case as one conversation."""
    ids = case.input("input_ids")[0].astype(np.int32)
    grid = case.grid("video_grid_thw")
    coords = case.inputs_like("point_coords")
    frames = case.input("point_frames").reshape(-1).tolist() if coords else []
    references = [SquareReference(c.reshape(-1, 2).astype(np.float32), f) for c, f in zip(coords, frames, strict=True)]
    time, height, width = grid[0].tolist()
    media = batch.PreparedMedia(
        patches=case.input("pixel_values_videos").astype(np.float32),
        grid_thw=(time, height, width),
        frames=None,
        frame_size=(1, 1),
        frame_count=2 * time,
        seconds_per_grid=float(case.input("second_per_grid_ts")[0]),
    )
    memory = case.input("refer_mask").astype(bool) if case.has_input("refer_mask") else None
    return batch.Conversation(ids, media, references, memory)


def vision_inputs(case: Case, context: Context, buckets: BucketTable = BUCKETS) -> tuple[np.ndarray, VisionTables, np.ndarray]:
    """Return the patches [P, patch_dim] of a case of the kind ``vision`` in our order and padded, their index tables, and the place of each recorded token."""
    patches = case.input("pixel_values")
    tables, places = build_vision_index(case.grid("grid_thw"), context.loaded.config.vision, buckets)
    padded = np.zeros((len(tables.rope), patches.shape[1]), np.float32)
    place_patches([patches], places, padded)
    return padded, tables, places


def model_inputs(case: Case, context: Context) -> ModelInputs:
    """Return the recorded inputs of a case as a batch of one row."""
    return batch.collate([conversation_of(case)], context.loaded.config, context.loaded.tokenizer.pad_id)


def _seg_hidden(answer: Generation, inputs: ModelInputs, tokens: np.ndarray, seg: int) -> np.ndarray:
    """Return the hidden states [O, D] of the `<|seg|>` tokens, those of the prompt first."""
    in_prompt = np.asarray(answer.prompt_hidden)[0][inputs.seg_positions[0] < inputs.input_ids.shape[1]]
    return np.concatenate([in_prompt, np.asarray(answer.hidden)[0, : len(tokens)][tokens == seg]])


def _compare_scores(conversation: batch.Conversation, context: Context, tokens: np.ndarray) -> Check:
    """Compare the recorded answer with our logits along it."""
    loaded = context.loaded
    told = replace(conversation, input_ids=np.concatenate([conversation.input_ids, tokens[:-1]]).astype(np.int32))
    inputs = batch.collate([told], loaded.config, loaded.tokenizer.pad_id)
    _, logits, _ = _language(loaded.model, jax.device_put(inputs))
    return judge_scores(context, np.asarray(logits)[0, -len(tokens) :], tokens)


def judge_scores(context: Context, logits: np.ndarray, tokens: np.ndarray) -> Check:
    """Compare recorded tokens [N] with logits [N, V] by how much these prefer another token to a recorded one.

    In bfloat16 rounding may decide an argmax, so that equal tokens cannot be asked for. The preference is measured in units of the root mean square of a
    step's logits. Two logits that are each off by the allowed share of that unit may exchange their order when they lie within a few such errors of each
    other; ``ARGMAX_MARGIN`` says how many.
    """
    scores = logits.astype(np.float64)
    gap = scores.max(axis=1) - scores[np.arange(len(tokens)), tokens]
    unit = np.sqrt(np.mean(scores**2, axis=1))
    return Check("tokens by scores", float(np.max(gap / unit)), float(gap.max()), ARGMAX_MARGIN * context.hidden)
