"""A table of what a mixture is made of."""

from __future__ import annotations

from rich.table import Table

from unipixel_jax.data.mixture import Mixture


def report(mixture: Mixture) -> Table:
    """Make a table with a line for each source: its samples, their repeat, their share of an epoch and their kinds. The kinds that are left out, since they
    do not fill a batch, stand below it.
    """
    table = Table("source", title=f"{len(mixture):,} samples an epoch, {mixture.steps_per_epoch:,} batches of {mixture.batch_size}")
    for column in ("samples", "repeat", "an epoch", "share"):
        table.add_column(column, justify="right")
    table.add_column("kinds")
    for part, kinds in zip(mixture.parts, mixture.shares(), strict=True):
        count = len(part.source)
        total = count * part.repeat
        described = ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())
        table.add_row(part.source.name, f"{count:,}", str(part.repeat), f"{total:,}", f"{total / len(mixture):.1%}", described)
    if left_out := mixture.left_out():
        table.caption = f"left out, fewer than a batch: {', '.join(f'{kind} ({count})' for kind, count in left_out.items())}"
    return table
