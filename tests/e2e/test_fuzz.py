"""A short fuzz, with other cases than the long one's first, and a few kills; and the fuzz itself sees what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from scripts.fuzz.case import Case  # noqa: E402
from scripts.fuzz.judge import FAILURES, MAX_GROWTH, Ended, judge  # noqa: E402

SEED = "7"
KINDS = ("torch", "converted", "shards", "recordings", "images", "videos", "annotations", "commands")
CASES = 24


def run(module, *arguments):
    """Run a module as from a shell, without the settings of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-m", module, "--seed", SEED, *arguments], cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    if "run it as another user" in done.stderr:
        pytest.skip("root may not make its file system read-only here")
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.slow
def test_mutated_inputs_end_in_success_or_one_line(work):
    chosen = [word for kind in KINDS for word in ("--only", kind)]
    # Where the tests share the machine with other work, a first `segment`, which compiles, takes longer than the fuzz allows by itself.
    done = run("scripts.fuzz", *chosen, "--count", str(CASES), "--seconds", "180", "--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"│ {kind}" in done.stdout for kind in KINDS)


@pytest.mark.slow
def test_killed_conversions_lose_nothing(work):
    done = run("scripts.fuzz.kills", "--only", "convert", "--count", "2", "--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convert: 2 kills" in done.stdout


GOOD = {"status": 0, "seconds": 0.1, "growth": 0, "stopped": "", "out": "done", "err": "", "processes": False}
BEFORE = {"a/b/c/in": "1"}


@pytest.mark.parametrize(
    ("outcome", "ended", "after"),
    [
        ("ok", {}, BEFORE | {"a/b/c/out": "2"}),
        ("refused", {"status": 1 << 8, "err": "error: no such file\n"}, BEFORE),
        ("refused", {"status": 2 << 8, "err": "usage: unipixel-jax\nunipixel-jax: error: what?\n"}, BEFORE),
        ("reported", {"status": 1 << 8, "out": "1 of 2 samples failed"}, BEFORE),
        ("unexpected", {"status": 1 << 8, "err": "error: KeyError: 'x' (this should not happen; --verbose shows where)\n"}, BEFORE),
        ("traceback", {"status": 1 << 8, "err": "Traceback (most recent call last):\nKeyError: 'x'\n"}, BEFORE),
        ("traceback", {"status": 99 << 8}, BEFORE),
        ("crash", {"status": 11}, BEFORE),
        ("hang", {"status": 9, "stopped": "hang"}, BEFORE),
        ("memory", {"growth": MAX_GROWTH + 1}, BEFORE),
        ("leftover", {}, BEFORE | {"tmp/x": "2"}),
        ("leftover", {}, BEFORE | {"a/b/c/out/.unipixel-00000000-1-0.part": "2"}),
        ("leftover", {"status": 1 << 8, "err": "error: no\n"}, BEFORE | {"a/b/c/out": "half"}),
        ("leftover", {"processes": True}, BEFORE),
        ("destroyed", {}, {"a/b/c/in": "other"}),
        ("destroyed", {"status": 1 << 8, "err": "error: no\n"}, {}),
        ("noise", {"status": 1 << 8, "err": "lib: oh\nerror: no\n"}, BEFORE),
        ("noise", {"status": 1 << 8, "err": "error: no\nerror: and no\n"}, BEFORE),
    ],
)
def test_endings_are_told_apart(outcome, ended, after):
    found, detail = judge(Ended(**GOOD | ended), BEFORE, after, Case([], "", ("out",)))
    assert found == outcome
    assert bool(detail) == (outcome in FAILURES)
