"""The loader: the same batches on any number of hosts and workers, after any interruption, and whatever fails."""

import json
import logging
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from toy_source import ToySource

from unipixel_jax.data.loader import Loader, LoaderOptions, _pack, _unpack
from unipixel_jax.data.mixture import Mixture, Part
from unipixel_jax.errors import UserError

PARTS = (Part(ToySource("a", (("seg", 7), ("text", 5), ("seg", 2))), 2), Part(ToySource("b", (("text", 6),))))


@dataclass(frozen=True)
class ToySample:
    source: str
    kind: str
    name: str
    numbers: np.ndarray


def draw(annotation, rng):
    return ToySample(annotation.source, annotation.data_type, annotation.name, rng.integers(0, 1000, (2, 3)))


def draw_sound(annotation, rng):
    """Half of the samples are broken, some in every way that a sample may be."""
    number = int(annotation.name.split("-")[1])
    sample = draw(annotation, rng)
    if number % 4 == 1:
        raise UserError(f"{annotation.name}.png is broken")
    if number % 4 == 3:
        raise FileNotFoundError(2, "No such file", f"{annotation.name}.png")
    return sample


def draw_nothing(annotation, rng):
    raise UserError(f"{annotation.name}.png is broken")


def draw_mistaken(annotation, rng):
    raise TypeError("a mistake of the program")


def collate(samples):
    """The contents of a batch in a form that can be compared."""
    return [(s.name, s.numbers.tolist()) for s in samples]


def loader(draw=draw, host=0, hosts=1, batch_size=4, seed=0, **options):
    return Loader(Mixture(PARTS, batch_size, seed), draw, collate, LoaderOptions(**options), host, hosts)


def take(it, count):
    with it:
        return [next(it) for _ in range(count)]


def test_batches_follow_the_mixture():
    mixed = Mixture(PARTS, 4)
    for step, batch in enumerate(take(loader(), 2 * mixed.steps_per_epoch + 3)):
        assert (batch.step, batch.kind) == (step, mixed.kind(step))
        assert [name for name, _ in batch.arrays] == [mixed.annotation(n).name for n in mixed.batch(step)]


def test_what_is_drawn_differs_between_places_and_seeds():
    drawn = [str(numbers) for batch in take(loader(), 30) for _, numbers in batch.arrays]
    assert len(set(drawn)) == len(drawn)
    assert take(loader(seed=1), 3) != take(loader(), 3)


@pytest.mark.parametrize("draw", [draw, draw_sound])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_do_not_change_a_batch(hosts, draw):
    alone = take(loader(draw), 20)
    shared = [take(loader(draw, host, hosts), 20) for host in range(hosts)]
    for step in range(20):
        assert [row for part in shared for row in part[step].arrays] == alone[step].arrays
        assert {part[step].kind for part in shared} == {alone[step].kind}


def test_threads_do_not_change_a_batch():
    assert take(loader(threads=1, buffer=1), 20) == take(loader(threads=8, buffer=16), 20)


def test_workers_do_not_change_a_batch():
    """Arrays of two processes come in shared memory; their failures are logged and counted in this process."""
    alone, shared = loader(draw_sound), loader(draw_sound, workers=2, threads=1, buffer=2)
    assert take(alone, 6) == take(shared, 6)
    assert sum(alone.failures.counts.values()) > 0
    assert (alone.failures.counts, alone.failures.reasons) == (shared.failures.counts, shared.failures.reasons)


@pytest.mark.parametrize("hosts", [1, 2])
def test_resume_at_every_step(hosts):
    """The steps span two epochs and more. One host saves the state, and another number of hosts goes on from it."""
    saving = loader(draw_sound)
    states, batches = [], []
    with saving:
        for _ in range(18):
            states.append(json.loads(json.dumps(saving.state())))
            batches.append(next(saving))
    for at, state in enumerate(states):
        parts = [loader(draw_sound, host, hosts) for host in range(hosts)]
        for part in parts:
            part.restore(state)
        found = [take(part, 2) for part in parts]
        for offset, expected in enumerate(batches[at : at + 2]):
            assert [row for part in found for row in part[offset].arrays] == expected.arrays
            assert found[0][offset].step == expected.step


def test_restoring_a_loader_that_has_run():
    going = loader()
    with going:
        first = [next(going) for _ in range(5)]
        going.restore({**going.state(), "step": 1})
        assert [next(going) for _ in range(4)] == first[1:]
        assert going.state()["step"] == 5


def test_a_state_of_other_data_is_refused():
    state = loader().state()
    with pytest.raises(UserError, match="batch_size: 4 before, 8 now"):
        loader(batch_size=8).restore(state)
    with pytest.raises(UserError, match=r"sources: a:2 of \d+ samples before, a:1 of \d+ samples now"):
        Loader(Mixture([Part(p.source) for p in PARTS], 4), draw, collate).restore(state)


def test_a_state_of_the_same_sources_in_another_order_is_refused():
    state = json.loads(json.dumps(loader().state()))
    with pytest.raises(UserError, match=r"\(order of the sources: a:2 of \d+ samples, b:1 .* before, b:1 .*, a:2 of \d+ samples now\)"):
        Loader(Mixture(PARTS[::-1], 4), draw, collate).restore(state)


def test_a_state_that_holds_the_sources_by_name_is_read():
    """Older checkpoints held the sources by name, in the order of the mixture."""
    state = loader().state()
    by_name = {source.pop("name"): source for source in state["mixture"]["sources"]}
    state = json.loads(json.dumps({"step": 3, "mixture": {**state["mixture"], "sources": by_name}}))
    going = loader()
    going.restore(state)
    assert going.step == 3
    with pytest.raises(UserError, match="order of the sources"):
        Loader(Mixture(PARTS[::-1], 4), draw, collate).restore(state)


def test_what_fails_is_replaced_by_its_kind_counted_and_told(caplog):
    mixed, going = Mixture(PARTS, 4), loader(draw_sound)
    with caplog.at_level(logging.WARNING):
        batches = take(going, 30)
    kinds = {annotation.name: (annotation.source, annotation.data_type) for annotation in map(mixed.annotation, range(len(mixed)))}
    replaced = 0
    for batch in batches:
        for (name, _), number in zip(batch.arrays, mixed.batch(batch.step), strict=True):
            wanted = mixed.annotation(number).name
            assert kinds[name] == kinds[wanted]
            assert int(name.split("-")[1]) % 2 == 0
            replaced += name != wanted
    assert sum(going.failures.counts.values()) >= replaced > 20
    assert set(going.failures.counts) == {"a", "b"}
    assert going.failures.reasons["a", "a-1"] == "a-1.png is broken"
    assert "FileNotFoundError" in going.failures.reasons["b", "b-3"]
    assert len(caplog.records) == len(going.failures.reasons), "each sample is told once"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_fails_again_and_again_ends_the_run(workers):
    with pytest.raises(UserError, match=r": 4 samples of the kind \w+ failed one after another, the last one, \w-\d+, because: \w-\d+.png is broken"):
        take(loader(draw_nothing, workers=workers, max_retries=3), 1)


def test_mistakes_of_the_program_are_not_taken_for_broken_samples():
    with pytest.raises(TypeError, match="a mistake of the program"):
        take(loader(draw_mistaken), 1)


def test_arrays_cross_over_as_they_are():
    values = {"bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16), "none": np.zeros((0, 3)), "bools": np.eye(3, dtype=bool), "words": ("a", 1)}
    packed = _pack(values)
    assert len(packed["buffers"]) == 3 and all(isinstance(b, np.ndarray) for b in packed["buffers"])
    found = _unpack(packed)
    for name in ("bf16", "none", "bools"):
        assert found[name].dtype == values[name].dtype
        np.testing.assert_array_equal(found[name], values[name])
    assert found["words"] == values["words"]


def test_collating_here_changes_nothing():
    mixture = Mixture(PARTS, 4)
    here = take(Loader(mixture, draw, collate, collate_here=True), 5)
    assert here == take(loader(), 5)


def test_refusals():
    with pytest.raises(UserError, match="batch of 4 samples cannot be shared by 3 hosts"):
        loader(hosts=3)
    with pytest.raises(UserError, match="this is host 2, expected 0 to 1"):
        loader(host=2, hosts=2)
