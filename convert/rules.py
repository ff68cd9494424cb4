"""The language of the tables: which torch names make which array, and what a checkpoint lacks or has too many of.

A table is a tuple of rows `(torch name, JAX path[, torch shape])`. Braces list alternatives, paired by position on both sides:
`("{q,k}_proj.{weight,bias}", "{q,k}.{weight,bias}")` is four rows. There are no patterns to match: a configuration expands the tables to the complete set of
names, so a coverage report is a difference of sets, and the same rules serve both directions.

Every weight keeps torch's [out, in] layout, so a rule never moves numbers: the two sides differ in name, in axes of size 1 or merged axes, and in
stacking. One function, from the JAX shape to torch's, therefore says all there is to say, and bytes can be copied from file to file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from unipixel_jax.core.trees import KeyPath, parse
from unipixel_jax.errors import UserError

Shape = tuple[int, ...]
TorchShape = Callable[[Shape], Shape]
Row = tuple[str, str] | tuple[str, str, TorchShape]

SHOWN = 20
"""How many names of each kind an error lists."""


def same(shape: Shape) -> Shape:
    """In torch the shape is the same."""
    return shape


def conv_1x1(shape: Shape) -> Shape:
    """In torch a linear map [out, in] is a 1x1 convolution [out, in, 1, 1]."""
    return (*shape, 1, 1)


def one_row(shape: Shape) -> Shape:
    """In torch a vector [D] is an embedding of one row [1, D]."""
    return (1, *shape)


@dataclass(frozen=True)
class Rule:
    """One JAX array and the torch tensors it is made of.

    Attributes:
        torch: the names, more than one only where they are stacked.
        jax: the array's path.
        stacked: whether the array has a leading axis over `torch`; an array of one layer has it too.
        torch_shape: from the JAX shape, less the stacking axis, to each torch tensor's.
    """

    torch: tuple[str, ...]
    jax: KeyPath
    stacked: bool = False
    torch_shape: TorchShape = same

    def torch_shapes(self, jax_shape: Shape) -> dict[str, Shape]:
        """Every torch tensor's shape, given the array's."""
        return dict.fromkeys(self.torch, self.torch_shape(jax_shape[1:] if self.stacked else jax_shape))


def single(rows: Iterable[Row], torch: str = "", jax: str = "") -> list[Rule]:
    """One rule per row, with a prefix on either side."""
    return [Rule((torch + name,), parse(jax + path), torch_shape=shape) for name, path, shape in _expanded(rows)]


def each(rows: Iterable[Row], torch: str, jax: str, indices: Iterable[int]) -> list[Rule]:
    """The rows once per index, which stands for `*` in both prefixes."""
    return [rule for index in indices for rule in single(rows, torch.replace("*", str(index)), jax.replace("*", str(index)))]


def stacked(rows: Iterable[Row], torch: str, jax: str, indices: Iterable[int]) -> list[Rule]:
    """One rule per row over all indices, which stand for `*` in the torch prefix and become the array's first axis."""
    prefixes = [torch.replace("*", str(index)) for index in indices]
    if not prefixes:
        return []
    return [Rule(tuple(prefix + name for prefix in prefixes), parse(jax + path), True, shape) for name, path, shape in _expanded(rows)]


def _expanded(rows: Iterable[Row]) -> Iterable[tuple[str, str, TorchShape]]:
    for torch, jax, *shape in rows:
        for pair in _alternatives(torch, jax):
            yield *pair, shape[0] if shape else same


def _alternatives(torch: str, jax: str) -> list[tuple[str, str]]:
    if "{" not in torch:
        return [(torch, jax)]
    (torch_head, torch_choices, torch_tail), (jax_head, jax_choices, jax_tail) = _split(torch), _split(jax)
    rest = _alternatives(torch_tail, jax_tail)
    return [(torch_head + t + tail_t, jax_head + j + tail_j) for t, j in zip(torch_choices, jax_choices, strict=True) for tail_t, tail_j in rest]


def _split(text: str) -> tuple[str, list[str], str]:
    head, _, rest = text.partition("{")
    choices, _, tail = rest.partition("}")
    return head, choices.split(","), tail


@dataclass(frozen=True)
class Coverage:
    """How a checkpoint differs from what its configuration asks for.

    Attributes:
        missing: expected names that are not there.
        unexpected: names that no rule knows.
        misshapen: name to (found, expected) shape or dtype, as text.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, found: Mapping[str, Shape], expected: Mapping[str, Shape | None]) -> Coverage:
        """Compare names, and shapes where an expected one is given."""
        wrong = {n: (str(found[n]), str(expected[n])) for n in expected if n in found and expected[n] not in (None, found[n])}
        return cls(tuple(n for n in expected if n not in found), tuple(n for n in found if n not in expected), wrong)

    def require_complete(self, what: str) -> None:
        """Do nothing if all is there.

        Raises:
            UserError: one line with every kind of difference, its count and its first names.
        """
        shapes = [f"{name} {found}, expected {expected}" for name, (found, expected) in self.misshapen.items()]
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for kind, names in (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", shapes))
            if names
        ]
        if parts:
            raise UserError(f"{what} does not fit its config.json: {self._hint()}{'; '.join(parts)}")

    def _hint(self) -> str:
        """What to do where the names are right but for one prefix: a training framework saved the model as a part of something."""
        if not self.missing or not self.unexpected:
            return ""
        first, missing = self.unexpected[0], set(self.missing)
        prefix = next((first.removesuffix(name) for name in self.missing if first.endswith(f".{name}")), "")
        fitting = sum(name.startswith(prefix) and name.removeprefix(prefix) in missing for name in self.unexpected) if prefix else 0
        if 2 * fitting <= len(self.missing):
            return ""
        return f"{fitting} names begin with {prefix!r}, which no checkpoint of the reference has; save the model's own state_dict() and convert that; "
