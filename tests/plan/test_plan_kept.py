"""Reports that are kept: compiled once, read afterwards, and made again where anything that they depend on is another."""

import pytest

from unipixel_jax.core.cache import VARIABLE
from unipixel_jax.plan.kept import FOLDER, kept, key_of
from unipixel_jax.plan.memory import Memory
from unipixel_jax.plan.report import ProgramReport, Serving


class Lowered:
    def __init__(self, text):
        self.text = text

    def as_text(self, debug_info):
        assert debug_info, "the report names places in the source"
        return self.text


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A compiler that counts its calls, with an empty cache."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def compiled():
        compiled.calls += 1
        return ProgramReport("decode", Memory({"needed": 2.0**30}, 2.0**34), None, None, 700.0, Serving(1, 8, 32, 0.5))

    compiled.calls = 0
    return compiled


def test_a_program_is_compiled_once(make, tmp_path):
    key = key_of(Lowered("module"), "v5e-16", None)
    first, second = kept(key, make), kept(key, make)
    assert first == second == make() and make.calls == 2
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{key}.json"]


def test_whatever_a_report_depends_on_makes_another_key():
    keys = {key_of(Lowered(text), *conditions) for text in ("one", "another") for conditions in (("v5e-16", None), ("v5e-8", None), ("v5e-16", {"effort": -1}))}
    assert len(keys) == 6
    assert key_of(Lowered("one"), "v5e-16", None) in keys


@pytest.mark.parametrize("content", ["", "[]", '{"programs": []}', '{"config": 1}'])
def test_a_damaged_report_is_made_anew(content, make, tmp_path):
    key = key_of(Lowered("module"))
    kept(key, make)
    path = tmp_path / FOLDER / f"{key}.json"
    whole = path.read_text()
    path.write_text(content)
    assert kept(key, make).compile_seconds == 700
    assert make.calls == 2 and path.read_text() == whole


def test_without_a_cache_nothing_is_kept(make, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    key = key_of(Lowered("module"))
    assert kept(key, make) == kept(key, make)
    assert make.calls == 2 and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_loses_no_report(make, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert kept(key_of(Lowered("module")), make).compile_seconds == 700
    assert make.calls == 1
