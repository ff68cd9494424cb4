"""Write the sentences of a clone of the torch reference to a file for ``unipixel-jax train --data.templates``, so that both trainings have the same words.

    python scripts/reference_templates.py UniPixel --out reference_templates.json

The lists are read from the text of its source files; none of its code is imported or run.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from unipixel_jax.core.files import replacing, require_regular_file
from unipixel_jax.data.templates import Templates
from unipixel_jax.errors import UserError, run_command
from unipixel_jax.processing.tokenizer import REF_TOKEN

EXPECTED = "expected a clone of https://github.com/PolyU-ChenLab/UniPixel"
CONSTANTS = "unipixel/constants.py"
MAX_BYTES = 4 << 20
LISTS = {
    "unipixel/dataset/sub_classes/segmentation.py": {
        "SEG_IMAGE_QUERY_PROMPTS": "image_query",
        "SEG_VIDEO_QUERY_PROMPTS": "video_query",
        "SEG_SENTENCE_PROMPTS": "sentence",
        "SEG_QUESTION_PROMPTS": "question",
        "SEG_EXPLANATORY_PROMPTS": "explanatory",
        "SEG_DESCRIPTION_PROMPTS": "description",
        "SEG_RESPONSES": "answer",
    },
    "unipixel/dataset/sub_classes/referring.py": {"REF_IMAGE_SHORT_PROMPTS": "caption"},
    "unipixel/dataset/sub_classes/region.py": {"REG_DETAILED_PROMPTS": "describe"},
    "unipixel/dataset/sub_classes/memory.py": {"SEG_MEMORY_PROMPTS": "locate"},
}
"""The file and the name of each list in the reference, and its name here."""


def read_lists(clone: Path) -> dict[str, list[str]]:
    """Return the reference's sentences by the names of their lists here.

    Raises:
        UserError: a file or list is missing, or is written in another way than as texts with constants in them.
    """
    constants = {name: _text(node, {}) for name, node in _assigned(clone / CONSTANTS).items() if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found: dict[str, list[str]] = {}
    for file, names in LISTS.items():
        assigned = _assigned(clone / file)
        for theirs, ours in names.items():
            node = assigned.get(theirs)
            texts = [_text(item, constants) for item in node.elts] if isinstance(node, ast.List | ast.Tuple) else []
            if not texts or None in texts:
                raise UserError(f"{clone / file} has no list {theirs} of texts: {EXPECTED}")
            found[ours] = [text for text in texts if text is not None]
    # These are used as they stand, with the token that they ask about in its place.
    found["caption"] = [text.replace("{", "{{").replace("}", "}}").replace(REF_TOKEN, "{}") for text in found["caption"]]
    return found


def _assigned(path: Path) -> dict[str, ast.expr]:
    """The values that a Python file gives to its names, not evaluated."""
    require_regular_file(path, EXPECTED)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MB: {EXPECTED}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is no Python file ({error}): {EXPECTED}") from None
    return {target.id: node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}


def _text(node: ast.expr, constants: Mapping[str, str | None]) -> str | None:
    """The text of a literal, in which constants may stand between braces; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.conversion == -1 and node.format_spec is None:
        return constants.get(node.value.id)
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part, constants) for part in node.values]
        return None if None in parts else "".join(part for part in parts if part is not None)
    return None


def main() -> int:
    """Read the lists, check that a training takes them, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, metavar="CLONE", help="the folder of the clone")
    parser.add_argument("--out", type=Path, default=Path("reference_templates.json"), metavar="FILE", help="the file to write (default: %(default)s)")
    args = parser.parse_args()
    lists = read_lists(args.clone)
    Templates(**{name: tuple(sentences) for name, sentences in lists.items()})
    with replacing(args.out) as aside:
        aside.write_text(json.dumps(lists, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{args.out}: {sum(map(len, lists.values()))} sentences in {len(lists)} lists")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, verbose=False))
