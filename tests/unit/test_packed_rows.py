"""Several samples in a row: the model sees and learns the same as from each sample in a row of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_models import MICRO, micro_model

from unipixel_jax.batch import row as row_of
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.data.assemble import Sample
from unipixel_jax.data.batch import collate
from unipixel_jax.data.sequence_packing import WIDEST, choose_rows, pack
from unipixel_jax.processing.batch import Conversation, PreparedMedia
from unipixel_jax.processing.chat import IGNORE_INDEX
from unipixel_jax.processing.prompts import SquareReference
from unipixel_jax.train.objective import objective

PAD = 0
C = MICRO


def sample(number, kind, words, answer):
    """A conversation of invented tokens: words, then a clip or image, a reference or memories of it, words again, and an answer."""
    rng = np.random.default_rng(number)

    def text(count):
        return rng.integers(1, 60, count).tolist()

    ids, media, references, memory = text(words), None, (), None
    if kind != "text":
        grid = (1, 4, 4) if kind == "still" else (2, 2, 4)
        count = int(np.prod(grid))
        media = PreparedMedia(rng.normal(size=(count, C.vision.patch_dim)).astype(np.float32), grid, None, (8, 8), 2, 1.0, kind == "still")
        pad = C.image_token_id if kind == "still" else C.video_token_id
        ids += [C.vision_start_token_id, *[pad] * (count // 4), C.vision_end_token_id]
    if kind == "point":
        ids.append(C.ref_token_id)
        references = (SquareReference(rng.uniform(0, 32, (1, 2)).astype(np.float32), 1),)
    if kind == "memory":
        ids += [C.mem_token_id, C.mem_token_id]
        memory = np.ones((2, 1, 1, 2), bool)
        memory[0, 0, 0, number % 2] = False
    learned = text(answer)
    labels = np.array([IGNORE_INDEX] * (len(ids) + 2) + learned, np.int32)
    ids += [61, 62, *learned]
    return Sample(Conversation(np.array(ids, np.int32), media, references, memory, ()), labels, None, "toy", "region", f"{number}")


SAMPLES = st.lists(
    st.builds(sample, st.integers(0, 99), st.sampled_from(["text", "still", "clip", "point", "memory"]), st.integers(1, 40), st.integers(1, 30)),
    min_size=1,
    max_size=8,
)


def collate_packed(samples, capacity=200):
    return collate(samples, pack([each.tokens for each in samples], capacity), len(samples), C, PAD)


def collate_apart(samples):
    return collate(samples, [[i] for i in range(len(samples))], len(samples), C, PAD)


def seen(arrays, row, place):
    """Everything that the model is given for the tokens in a slice of a row, with the tables looked up."""
    arrays = row_of(arrays, row)
    inputs = arrays.inputs
    found = {
        "ids": inputs.input_ids[0, place],
        "positions": inputs.position_ids[:, 0, place],
        "labels": arrays.labels[0, place],
        "weights": arrays.label_weights[0, place],
    }
    merged = np.concatenate([inputs.patches.reshape(-1, 4 * C.vision.patch_dim), np.zeros((1, 4 * C.vision.patch_dim), np.float32)])
    found["pixels"] = merged[inputs.vision_slots[0, place]]
    refs = inputs.references
    for name in ("coords", "labels", "is_box", "frames", "spans"):
        table = getattr(refs, name)
        found[f"reference {name}"] = np.concatenate([table, np.zeros_like(table[:1])])[inputs.reference_slots[0, place]]
    remembered = merged[inputs.memory_rows].sum(axis=1)
    found["memory"] = np.concatenate([remembered, np.zeros_like(remembered[:1])])[inputs.memory_slots[0, place]]
    return found


@given(SAMPLES)
def test_packed_samples_are_what_they_are_alone(samples):
    packed = collate_packed(samples)
    width = packed.inputs.input_ids.shape[-1]
    used = len(pack([each.tokens for each in samples], 200))
    by_name = {}
    for each in samples:
        by_name.setdefault(each.name, []).append(each)
    names = iter(packed.samples)
    counted = 0
    for row, length in enumerate(packed.inputs.lengths[:, 0]):
        segments = packed.inputs.segments[row, 0]
        assert np.count_nonzero(segments) == length and not segments[: width - length].any()
        if row >= used:
            assert length == 1 and segments[-1] == 1 and not packed.label_weights[row].any()
            continue
        for number in range(1, segments.max() + 1):
            (place,) = np.nonzero(segments == number)
            place = slice(place[0], place[-1] + 1)
            _, name = next(names)
            candidates = [collate_apart([each]) for each in by_name[name]]
            ids = packed.inputs.input_ids[row, 0, place]
            expected = next(c for c in candidates if np.array_equal(c.inputs.input_ids[0, 0, -c.inputs.lengths[0, 0] :], ids))
            alone = seen(expected, 0, slice(-expected.inputs.lengths[0, 0], None))
            alone["weights"] = alone["weights"] / len(samples)
            for key, value in seen(packed, row, place).items():
                np.testing.assert_allclose(value, alone[key], rtol=1e-6, err_msg=key)
            counted += 1
    assert counted == len(samples)
    assert abs(packed.label_weights.sum() - 1) < 1e-5


@given(SAMPLES)
def test_one_sample_a_row(samples):
    arrays = collate_apart(samples)
    assert arrays.inputs.lengths[: len(samples), 0].tolist() == [s.tokens for s in samples]
    assert [name for _, name in arrays.samples] == [s.name for s in samples]
    assert arrays.inputs.segments.max() == 1


@given(SAMPLES, st.integers(1, 5))
def test_devices_that_share_frames_are_told_the_same(samples, parts):
    """Rows of any sizes whose frames are divided into parts: every token finds what it finds in a row that is whole."""
    rows = [[i] for i in range(len(samples))]
    whole, shared = (collate(samples, rows, len(samples), C, PAD, parts=number) for number in (None, parts))
    assert shared.inputs.patches.shape[:2] == (len(whole.labels), parts)
    for row in range(len(samples)):
        for key, value in seen(whole, row, slice(None)).items():
            np.testing.assert_array_equal(seen(shared, row, slice(None))[key], value, err_msg=key)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(10, 80))
def test_rows_hold_what_fits(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= capacity for row in rows)
    assert rows == sorted(sorted(row) for row in rows)
    half_empty = sum(2 * sum(lengths[i] for i in row) <= capacity for row in rows)
    assert half_empty <= 1, "two half-empty rows would have shared one"


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=32))
def test_chosen_rows_are_no_dearer_than_one_sample_a_row(lengths):
    def size(rows):
        return BUCKETS.batch.size(len(rows)) * BUCKETS.tokens.size(max(sum(lengths[i] for i in row) for row in rows))

    rows = choose_rows(lengths, BUCKETS)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= WIDEST
    assert size(rows) <= size([[i] for i in range(len(lengths))])


def test_short_samples_share_rows_and_a_long_one_does_not_make_all_rows_long():
    assert choose_rows([400] * 8, BUCKETS) != [[i] for i in range(8)]
    assert len(choose_rows([4000, *[300] * 9], BUCKETS)) == 2
    eight = dataclasses.replace(BUCKETS, batch=Buckets("prompts in a batch", 8, 2.0, 64))
    assert len(choose_rows([400] * 8, eight)) == 8, "eight devices need a row each"


@settings(max_examples=3)
@given(st.integers(0, 1000))
def test_the_loss_is_the_same(seed):
    kinds = ["text", "still", "clip", "point", "memory", "memory"]
    samples = [sample(seed + i, kind, 3 + 5 * i, 4 + i) for i, kind in enumerate(kinds)]
    model = micro_model()

    @jax.jit
    def loss(batch):
        return objective(model, batch, jnp.dtype(jnp.float32))[0]

    def of(packed):
        arrays = collate_packed(samples) if packed else collate_apart(samples)
        return float(loss(jax.device_put(arrays))), len(arrays.inputs.input_ids)

    (apart, apart_rows), (together, together_rows) = of(False), of(True)
    assert together_rows < apart_rows
    np.testing.assert_allclose(together, apart, rtol=2e-6)
