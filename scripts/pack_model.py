"""Write a converted directory with its arrays packed into one file, as the small model that ships with the package has them.

python scripts/pack_model.py runs/shapes_tiny/model unipixel_jax/assets/shapes_tiny
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from unipixel_jax.core.files import PARAMS
from unipixel_jax.core.stored import pack, packed


def main(source: Path, target: Path) -> None:
    """Copy the files beside the arrays, and pack the arrays into one file."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    pack(source / PARAMS, packed(target / PARAMS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
