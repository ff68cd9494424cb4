"""Fields of a configuration on the command line."""

from dataclasses import dataclass
from typing import Literal

import pytest

from unipixel_jax.train.overrides import override


@dataclass(frozen=True)
class Part:
    """A part of a configuration, with a field of each kind that can be overridden.

    Attributes:
        rate, other_rate: numbers,
            on two lines.
    """

    rate: float = 1.0
    other_rate: float | None = 2.0
    names: tuple[str, ...] = ("a",)
    pair: tuple[int, int] = (1, 2)
    kind: Literal["x", "y"] = "x"
    on: bool = True
    unsaid: dict | None = None


@dataclass(frozen=True)
class Everything:
    part: Part = Part()
    steps: int | None = 3


def test_every_kind_of_field_takes_another_value():
    text = "--part.rate=-2e-1 --part.other_rate None --part.names b c --part.pair 3 4 --part.kind y --part.no-on --steps 5"
    assert override(Everything(), text.split(), "x") == Everything(Part(-0.2, None, ("b", "c"), (3, 4), "y", False), 5)
    whole = Everything()
    assert override(whole, [], "x") is whole
    assert override(whole, ["--part.names"], "x").part.names == ()


@pytest.mark.parametrize("word", ["--part.kind z", "--part.pair 1", "--steps 1.5", "--part.rat 1", "--part 1", "--unsaid 1", "--part.unsaid None", "steps 3"])
def test_what_no_field_takes_is_refused(word, capsys):
    with pytest.raises(SystemExit) as ended:
        override(Everything(), word.split(), "a command")
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith("a command: error: ")


def test_help_tells_what_fields_are_for_and_their_values(capsys):
    with pytest.raises(SystemExit):
        override(Everything(), ["--help"], "x")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--part.other-rate FLOAT numbers, on two lines. (now: 2.0)" in shown
