"""The order of samples: every property that training relies on."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_source import ToySource

from unipixel_jax.data.mixture import Mixture, Part, parse
from unipixel_jax.errors import UserError

A = ToySource("a", (("seg", 7), ("text", 5), ("seg", 2)))
B = ToySource("b", (("text", 6),))
C = ToySource("c", (("ref", 3),))


def mixture(batch_size=4, seed=0):
    return Mixture([Part(A, 2), Part(B), Part(C)], batch_size, seed)


def test_parse():
    assert parse("refcoco:10,mevis") == {"refcoco": 10, "mevis": 1}
    assert parse(" tfds:ref_coco:2 , tfds:davis") == {"tfds:ref_coco": 2, "tfds:davis": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty name"),
        ("a,,b", "empty name"),
        (":3", "empty name"),
        ("a:0", "repeat of 'a:0' is '0'"),
        ("a:-2", "expected a positive integer"),
        ("a:1.5", "expected a positive integer"),
        ("a:", "expected a positive integer"),
        ("a,b,a:3", "a is listed twice"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_counts():
    mixed = mixture()
    assert len(mixed) == 2 * 14 + 6 + 3
    assert mixed.kinds == ("seg", "text", "ref")
    assert mixed.shares() == [{"seg": 18, "text": 10}, {"text": 6}, {"ref": 3}]
    assert mixed.left_out() == {"ref": 3}
    assert mixed.steps_per_epoch == 18 // 4 + 16 // 4 + 0  # three of "ref" fill no batch of four


def test_numbers_lead_to_samples():
    mixed = mixture()
    names = [mixed.annotation(n).name for n in range(len(mixed))]
    own = [f"a-{i}" for i in range(14)]
    assert names == own + own + [f"b-{i}" for i in range(6)] + [f"c-{i}" for i in range(3)]
    assert mixed.locate(14 + 13) == (0, 13) and mixed.locate(28) == (1, 0)


@given(batch_size=st.integers(1, 9), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_an_epoch(batch_size, seed, epoch):
    """Whole batches of one kind; no sample more often than its repeat; of a kind less than a batch is left out."""
    mixed = mixture(batch_size, seed)
    steps = range(epoch * mixed.steps_per_epoch, (epoch + 1) * mixed.steps_per_epoch)
    seen, used = Counter(), []
    for step in steps:
        batch = mixed.batch(step)
        assert batch.shape == (batch_size,) and batch.dtype == np.int32
        assert {mixed.annotation(n).data_type for n in batch} == {mixed.kind(step)}
        seen[mixed.kind(step)] += batch_size
        used += batch.tolist()
    assert len(set(used)) == len(used)
    assert all(0 <= total - seen[kind] < batch_size for kind, total in (("seg", 18), ("text", 16), ("ref", 3)))


def test_order_is_a_function_of_seed_and_step():
    forward, backward = mixture(), mixture()
    steps = list(range(3 * forward.steps_per_epoch))
    there = [forward.batch(s).tolist() for s in steps]
    back = [backward.batch(s).tolist() for s in reversed(steps)]
    assert there == back[::-1]
    assert there == [pickle.loads(pickle.dumps(forward)).batch(s).tolist() for s in steps]
    epochs = np.split(np.array(there), 3)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert [mixture(seed=1).batch(s).tolist() for s in steps] != there


def test_kinds_are_mixed_within_an_epoch():
    mixed = Mixture([Part(ToySource("x", (("p", 400), ("q", 400))))], 4)
    kinds = [mixed.kind(step) for step in range(mixed.steps_per_epoch)]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert 70 < changes < 130  # 199 places, half of them


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_a_batch(hosts):
    """The global batch does not know of hosts: their slices, laid side by side, are the batch."""
    mixed = mixture()
    slices = [mixture().batch(3)[host * 4 // hosts : (host + 1) * 4 // hosts] for host in range(hosts)]
    assert np.concatenate(slices).tolist() == mixed.batch(3).tolist()


def test_another_is_of_the_same_source_and_kind(rng):
    mixed = mixture()
    for sample in range(len(mixed)):
        wanted = mixed.annotation(sample)
        found = {mixed.annotation(mixed.another([sample], rng)).name for _ in range(60)}
        kind = {mixed.annotation(n).name for n in range(len(mixed)) if mixed.annotation(n).data_type == wanted.data_type}
        assert found == {name for name in kind if name.startswith(wanted.source)} - {wanted.name}


def test_all_of_a_kind_are_tried_before_one_is_tried_again(rng):
    mixed = mixture()
    tried = [29]
    for _ in range(5):
        tried.append(mixed.another(tried, rng))
    assert sorted(mixed.annotation(n).name for n in tried) == [f"b-{i}" for i in range(6)]
    assert mixed.annotation(mixed.another(tried, rng)).source == "b"


def test_a_fingerprint_tells_whatever_changes_the_order():
    mixed, parts = mixture(), [Part(A, 2), Part(B), Part(C)]
    assert mixed.changes(mixture().fingerprint()) == []
    other = Mixture([parts[1], parts[0], parts[2]], 4)
    assert other.batch(0).tolist() != mixed.batch(0).tolist()
    for changed in (other, mixture(seed=1), mixture(batch_size=2), Mixture(parts[:2], 4), Mixture([Part(A), *parts[1:]], 4)):
        assert changed.fingerprint() != mixed.fingerprint() and len(changed.changes(mixed.fingerprint())) == 1
    assert Mixture(parts[:2], 4).changes(mixed.fingerprint()) == ["sources: c:1 of 3 samples before, nothing now"]


def test_refusals():
    with pytest.raises(UserError, match="no data sets"):
        Mixture([], 4)
    with pytest.raises(UserError, match="batch size is 0"):
        Mixture([Part(A)], 0)
    with pytest.raises(UserError, match="empty has no samples after filtering"):
        Mixture([Part(A), Part(ToySource("empty", ()))], 4)
    with pytest.raises(UserError, match=r"no kind of sample fills a batch of 16 \(9 of seg, 5 of text\)"):
        Mixture([Part(A)], 16)


def test_a_million_samples_are_light():
    mixed = Mixture([Part(ToySource("big", (("p", 700_000), ("q", 300_000))))], 256)
    assert mixed.batch(mixed.steps_per_epoch * 5 + 3).max() < 1_000_000
    assert len(pickle.dumps(mixed)) < 8e6
