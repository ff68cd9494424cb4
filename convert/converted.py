"""A reader of converted directories as torch's tensors. Each tensor is compared with the checksum that was taken when it was converted."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core import checkpoint
from unipixel_jax.core.byte_streams import Blocks
from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.trees import join
from unipixel_jax.errors import UserError
from unipixel_jax.models.quantised import require_full

from .manifest import NAME, Manifest, Record
from .names import canonical
from .rules import Coverage
from .tables import all_rules
from .tensors import CODES, Tensor


def read_converted(directory: Path, config: UniPixelConfig, manifest: Manifest) -> dict[str, Tensor]:
    """Return every torch tensor under its canonical name, in the dtype that it had in the source; a tied head is left out.

    Args:
        directory: a converted directory.
        config: the configuration in its config.json.
        manifest: its manifest.

    Raises:
        UserError: the arrays, or the tensors in the manifest, are not those of the configuration. Reading a tensor raises it if its bytes have changed.
    """
    require_full(config, directory, "the conversion to torch")
    stored = checkpoint.read(directory / PARAMS)
    rules = all_rules(config)
    found = {join(path): array.shape for path, array in stored.items()}
    Coverage.of(found, dict.fromkeys(join(rule.jax) for rule in rules)).require_complete(str(directory))
    records = {canonical(name): record for name, record in manifest.tensors.items() if name != manifest.tied}
    Coverage.of(dict.fromkeys(records, ()), dict.fromkeys(name for rule in rules for name in rule.torch)).require_complete(str(directory / NAME))
    tensors = {}
    for rule in rules:
        array = stored[rule.jax]
        shapes = rule.torch_shapes(array.shape)
        for index, name in enumerate(rule.torch):
            tensor = Tensor(CODES[array.dtype], shapes[name], partial(array.blocks, index if rule.stacked else None))
            tensors[name] = _checked(name, tensor.cast(records[name].dtype), records[name], directory)
    return tensors


def _checked(name: str, tensor: Tensor, record: Record, directory: Path) -> Tensor:
    """Return the tensor, whose checksum is compared with the record's after its last block."""

    def blocks() -> Blocks:
        checksum = 0
        for block in tensor.blocks():
            checksum = zlib.crc32(block, checksum)
            yield block
        if record.crc32 != f"{checksum:08x}":
            raise UserError(f"{directory}: {name} has changed since it was converted ({checksum:08x}, expected {record.crc32}); convert the checkpoint again")

    return Tensor(tensor.dtype, tensor.shape, blocks)
