"""The rules that name the torch tensors of each JAX array, and the coverage of a checkpoint by them.

A table is a tuple of rows `(torch name, JAX path[, torch shape])`. Braces list alternatives, paired by position on both sides:
`("{q,k}_proj.{weight,bias}", "{q,k}.{weight,bias}")` is four rows. There are no patterns to match: a configuration expands the tables to the complete set of
names, so a coverage report is a difference of sets, and the same rules serve both directions.

Every weight keeps torch's [out, in] layout, so that a rule never permutes values: the two sides differ in name, in axes of size 1 or merged axes, and in
stacking. So a function from the JAX shape to torch's is all that a rule needs besides names, and bytes can be copied from file to file.
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
"""The most names of each kind that an error lists."""


def same(shape: Shape) -> Shape:
    """Return torch's shape of an array that has the same shape there."""
    return shape


def conv_1x1(shape: Shape) -> Shape:
    """Return torch's shape [out, in, 1, 1] of a linear map [out, in] that is a 1x1 convolution there."""
    return (*shape, 1, 1)


def one_row(shape: Shape) -> Shape:
    """Return torch's shape [1, D] of a vector [D] that is an embedding of one row there."""
    return (1, *shape)


@dataclass(frozen=True)
class Rule:
    """One JAX array and the torch tensors it is made of.

    Attributes:
        torch: the tensors' names, of which there are several only if they are stacked.
        jax: the array's path.
        stacked: whether the array has a leading axis over the tensors; an array of one layer has that axis too.
        torch_shape: a function from the JAX shape without the stacking axis to the shape of each torch tensor.
    """

    torch: tuple[str, ...]
    jax: KeyPath
    stacked: bool = False
    torch_shape: TorchShape = same

    def torch_shapes(self, jax_shape: Shape) -> dict[str, Shape]:
        """Return the shape of every torch tensor by name, given the array's shape."""
        return dict.fromkeys(self.torch, self.torch_shape(jax_shape[1:] if self.stacked else jax_shape))


def single(rows: Iterable[Row], torch: str = "", jax: str = "") -> list[Rule]:
    """Return one rule for each row, with the prefixes `torch` and `jax`."""
    return [Rule((torch + name,), parse(jax + path), torch_shape=shape) for name, path, shape in _expanded(rows)]


def each(rows: Iterable[Row], torch: str, jax: str, indices: Iterable[int]) -> list[Rule]:
    """Return one rule for each row and index; the index takes the place of `*` in both prefixes."""
    return [rule for index in indices for rule in single(rows, torch.replace("*", str(index)), jax.replace("*", str(index)))]


def stacked(rows: Iterable[Row], torch: str, jax: str, indices: Iterable[int]) -> list[Rule]:
    """Return one rule for each row, over all indices: they take the place of `*` in the torch prefix, and become the array's first axis."""
    prefixes = [torch.replace("*", str(index)) for index in indices]
    if not prefixes:
        return []
    return [Rule(tuple(prefix + name for prefix in prefixes), parse(jax + path), True, shape) for name, path, shape in _expanded(rows)]


def _expanded(rows: Iterable[Row]) -> Iterable[tuple[str, str, TorchShape]]:
    """Yield the rows with their braces expanded, and with a shape function each."""
    for torch, jax, *shape in rows:
        for pair in _alternatives(torch, jax):
            yield *pair, shape[0] if shape else same


def _alternatives(torch: str, jax: str) -> list[tuple[str, str]]:
    """Return the pairs of names that a row's braces stand for."""
    if "{" not in torch:
        return [(torch, jax)]
    (torch_head, torch_choices, torch_tail), (jax_head, jax_choices, jax_tail) = _split(torch), _split(jax)
    rest = _alternatives(torch_tail, jax_tail)
    return [(torch_head + t + tail_t, jax_head + j + tail_j) for t, j in zip(torch_choices, jax_choices, strict=True) for tail_t, tail_j in rest]


def _split(text: str) -> tuple[str, list[str], str]:
    """Return the text before the first braces, the alternatives in them, and the text behind them."""
    head, _, rest = text.partition("{")
    choices, _, tail = rest.partition("}")
    return head, choices.split(","), tail


@dataclass(frozen=True)
class Coverage:
    """How a checkpoint differs from what its configuration asks for.

    Attributes:
        missing: expected names that are not there.
        unexpected: names that no rule has.
        misshapen: the found and the expected shape or dtype, as texts, of each tensor that has another one than expected.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, found: Mapping[str, Shape], expected: Mapping[str, Shape | None]) -> Coverage:
        """Compare names, and shapes where the expected shape is given."""
        wrong = {n: (str(found[n]), str(expected[n])) for n in expected if n in found and expected[n] not in (None, found[n])}
        return cls(tuple(n for n in expected if n not in found), tuple(n for n in found if n not in expected), wrong)

    def require_complete(self, what: str) -> None:
        """Check that there is no difference.

        Raises:
            UserError: there are differences; the message names every kind, its count and its first names.
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
        """Return advice where most names are right but for a prefix, as where a training framework saved the model as part of a module; else an empty text."""
        if not self.missing or not self.unexpected:
            return ""
        first, missing = self.unexpected[0], set(self.missing)
        prefix = next((first.removesuffix(name) for name in self.missing if first.endswith(f".{name}")), "")
        fitting = sum(name.startswith(prefix) and name.removeprefix(prefix) in missing for name in self.unexpected) if prefix else 0
        if 2 * fitting <= len(self.missing):
            return ""
        return f"{fitting} names begin with {prefix!r}, which no checkpoint of the reference has; save the model's own state_dict() and convert that; "
