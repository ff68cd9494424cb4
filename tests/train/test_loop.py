"""The training loop on a micro model: what it writes, how it continues, also on other numbers of devices, and what stops it."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from micro_run import MODEL, micro_config, micro_start, stopping_before

from unipixel_jax.data.pipeline import open_mixture
from unipixel_jax.errors import UserError
from unipixel_jax.train import loaders, loop
from unipixel_jax.train.checkpoints.reader import named_leaves
from unipixel_jax.train.loop import train
from unipixel_jax.train.reproduce import reproduce
from unipixel_jax.train.saved_step import read_saved_step
from unipixel_jax.train.setup import lay_out, set_up
from unipixel_jax.train.step import scale, step_key
from unipixel_jax.train.validation import Validation


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return micro_start(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """Six steps without a break, on one device."""
    run = tmp_path_factory.mktemp("straight")
    return run, weights(train(micro_config(start), run, start, jax.devices()[:1]))


def weights(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.trained)]


def held_bytes():
    """Return the bytes of all arrays on the devices."""
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def numbers(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_written(straight):
    run, _ = straight
    lines = numbers(run)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(np.isfinite(line[name]) for line in lines for name in ("loss", "language", "mask", "dice", "iou", "object", "grad_norm", "tokens_per_second"))
    assert all(0 <= line["host_wait"] <= 1 and 0 <= line["seg_rate"] <= 1 for line in lines)
    assert lines[0]["grad_norm_sam_encoder"] > 0
    assert list((run / "tensorboard").glob("events.*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()) == ["3", "6"]


def test_resumed_is_bit_equal(start, straight, tmp_path):
    config = micro_config(start)
    with pytest.MonkeyPatch.context() as patch:  # stopped in step 5, after the checkpoint of step 3
        patch.setattr(loop, "step_key", stopping_before(4))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, start, jax.devices()[:1])
    held, other = [], held_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_key", lambda *a: (held.append(held_bytes() - other), step_key(*a))[1])
        state = train(config, tmp_path, start, jax.devices()[:1])
    resumed = weights(state)
    # at the first step: weights and two moments, and nothing of them twice
    assert held[0] < 1.05 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert all(np.array_equal(a, b) for a, b in zip(resumed, straight[1], strict=True))
    assert [line["step"] for line in numbers(tmp_path)] == [2, 4, 6]


@pytest.mark.slow
def test_going_on_with_half_of_the_devices(start, tmp_path):
    """Six steps on eight devices, beside three on eight and three on four.

    Left out are the biases of SAM's keys: their exact gradient is zero, and Adam makes steps of the rounding. They were 99.9% of the squared difference.
    """
    config = micro_config(start)
    whole = compared(train(config, tmp_path / "eight", start, jax.devices()[:8]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_key", stopping_before(3))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "fewer", start, jax.devices()[:8])
    halved = compared(train(config, tmp_path / "fewer", start, jax.devices()[:4]))
    assert np.linalg.norm(halved - whole) <= 1e-6 * np.linalg.norm(whole)


@pytest.mark.slow
def test_two_devices_give_the_same_losses(start, straight, tmp_path):
    train(micro_config(start), tmp_path, start, jax.devices()[:2])
    losses = [[line["loss"] for line in numbers(run)] for run in (tmp_path, straight[0])]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_accumulated_batches_are_averaged(start, tmp_path, monkeypatch):
    """The same batch once or twice in a step is the same step."""
    real, first = loop.to_devices, []
    monkeypatch.setattr(loop, "to_devices", lambda arrays, mesh: first[0] if first else (first.append(real(arrays, mesh)), first[0])[1])
    config = micro_config(start, batch_size=4, steps=2, dropout=False)
    once, twice = (train(replace(config, accumulation=count), tmp_path / str(count), start, jax.devices()[:1]) for count in (1, 2))
    assert int(once.step) == int(twice.step) == 2
    for a, b in zip(numbers(tmp_path / "1"), numbers(tmp_path / "2"), strict=True):
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-6)
    for a, b in zip(weights(once), weights(twice), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("epochs", "batches", "accumulation", "steps"),
    [(1.0, 8, 4, 2), (1.0, 9, 4, 3), (2.0, 9, 4, 6), (0.5, 9, 4, 2), (1.0, 3, 4, 1), (0.01, 8, 4, 1), (1.0, 7, 1, 7)],
)
def test_steps_of_epochs_are_rounded_up(epochs, batches, accumulation, steps):
    """The steps are counted as transformers 4.53.3 counts them: each epoch is rounded up to whole steps, and so is its product with a fraction of epochs."""
    config = micro_config(Path("start"), steps=None, epochs=epochs, accumulation=accumulation)
    assert loop.total_steps(config, batches) == steps
    assert loop.total_steps(replace(config, steps=5), batches) == 5


def test_the_last_step_of_an_epoch_has_what_is_left(start, tmp_path, monkeypatch):
    """Three batches an epoch, two a step: the second step has one batch, whose gradient counts half, as in the reference."""
    real, kept, scaled = loop.run_loader, [], []

    def shortened(*args):
        loader = real(*args)
        loader.mixture.steps_per_epoch = 3
        return loader

    monkeypatch.setattr(loop, "run_loader", shortened)
    monkeypatch.setattr(loop, "step_key", lambda seed, step, batch: (kept.append((step, batch)), step_key(seed, step, batch))[1])
    monkeypatch.setattr(loop, "scale", lambda grads, share: (scaled.append(float(share)), scale(grads, share))[1])
    train(micro_config(start, steps=4, accumulation=2), tmp_path, start, jax.devices()[:1])
    assert kept == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)] and scaled == [0.5] * 4


def test_not_finite_stops_and_saves_the_batch(start, tmp_path, monkeypatch):
    real = loop.to_devices

    def spoiled(arrays, mesh):
        batch = real(arrays, mesh)
        return replace(batch, label_weights=batch.label_weights * np.float32("inf")) if len(seen) == 2 else (seen.append(1), batch)[1]

    seen = []
    monkeypatch.setattr(loop, "to_devices", spoiled)
    with pytest.raises(UserError, match=r"step 2: the loss or its gradients are not finite; samples: shapes_image"):
        train(micro_config(start, save_every=1000), tmp_path, start, jax.devices()[:1])
    (saved,) = tmp_path.glob("not_finite_step_2.npz")
    (arrays,) = read_saved_step(saved).batches
    lines = list(reproduce(tmp_path, saved))
    assert lines[0] == "step 2, with the weights that it began with"
    # the same loss as of a run that was stopped before that step; only the weights of its batch were spoiled
    monkeypatch.undo()
    before = train(micro_config(start, steps=2), tmp_path / "before", start, jax.devices()[:1])
    setup = set_up(lay_out(micro_config(start), MODEL, 6, jax.devices()[:1]), start, before)
    _, parts = loop.make_gradients(setup)(before.trained, setup.frozen, real(arrays, setup.mesh), step_key(0, 2, 0))
    assert lines[1].startswith(f"batch 0: loss {float(parts.total):.4g}")
    (tmp_path / "not_finite_step_2").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="expected the folder with the weights of step 2"):
        list(reproduce(tmp_path, saved))


def test_the_best_by_validation_is_kept(start, tmp_path, monkeypatch):
    opened, measured = [], iter([3.0, 1.0, 2.0, 4.0])
    real_mixture, real_measure = loaders.open_mixture, Validation.measure

    def open_mixture(datasets, root, batch_size, seed, split, filters):
        opened.append((seed, split))
        return real_mixture(datasets, root, batch_size, seed, split, filters)

    monkeypatch.setattr(loaders, "open_mixture", open_mixture)
    monkeypatch.setattr(Validation, "measure", lambda self, state: {**real_measure(self, state), "validation_loss": next(measured)})
    config = micro_config(start, steps=4, save_every=1, evaluate_every=1, keep=1)
    config = replace(config, data=replace(config.data, validation="shapes_image", validation_split="val", validation_batches=1))
    train(config, tmp_path, start, jax.devices()[:1])
    assert opened == [(0, "train"), (loaders.VALIDATION_SEED, "val")]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "4"]
    assert [line["validation_loss"] for line in numbers(tmp_path) if "validation_loss" in line] == [3.0, 1.0, 2.0, 4.0]
    assert all(np.isfinite(line["validation_dice"]) for line in numbers(tmp_path) if "validation_loss" in line)


def test_a_mistake_in_the_validation_data_shows_before_the_first_step(start, tmp_path):
    config = micro_config(start, evaluate_every=3)
    with pytest.raises(UserError, match="there is no source 'shapes_imag': did you mean shapes_image"):
        train(replace(config, data=replace(config.data, validation="shapes_imag")), tmp_path / "run", start, jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_replaced_samples_are_counted_in_the_log(start, tmp_path, monkeypatch):
    real = loaders.DrawSample.__call__

    def draw(self, annotation, rng):
        if annotation.name in broken:
            raise UserError("broken")
        return real(self, annotation, rng)

    config = micro_config(start, steps=4)
    batches = [open_mixture("shapes_image", "data", 8, config.seed).batch(step) for step in range(4)]
    broken = {str(batches[2][0]), str(batches[3][5])}
    monkeypatch.setattr(loaders.DrawSample, "__call__", draw)
    train(config, tmp_path, start, jax.devices()[:1])
    assert [line.get("replaced") for line in numbers(tmp_path)] == [None, 2]


def test_batch_that_does_not_divide(start, tmp_path):
    with pytest.raises(UserError, match=r"a batch of 4 does not divide among the 8 parts of the mesh .* use 8, or another mesh"):
        train(micro_config(start, batch_size=4), tmp_path, start)


def test_checkpoint_of_another_config(start, straight, tmp_path):
    run, _ = straight
    with pytest.raises(UserError, match="is of another run: trained"):
        train(micro_config(start, trained=("seg",)), run, start, jax.devices()[:1])


def compared(state):
    """The trained weights in one row, without the biases of SAM's keys."""
    leaves = named_leaves(state.trained)
    kept = [leaf for name, leaf in leaves.items() if not (name.startswith("sam2/") and name.endswith(("/k/bias", "/qkv/bias")))]
    assert len(leaves) - 20 < len(kept) < len(leaves)
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in kept])
