"""These tests check that the paths in docs/architecture.md exist, and that imports obey the table of packages there."""

import ast
import re
from pathlib import Path

import pytest
from test_imports import FREE, ROOMS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md))(?::([\w.]+))?`", TEXT)))
FOLDERS = sorted(set(re.findall(r"`((?:[\w-]+/)+[\w-]+)/?`", TEXT)))


def place(name):
    return next((path for path in (ROOT / "unipixel_jax" / name, ROOT / name, ROOT / "docs" / name) if path.exists()), None)


def defined(body):
    """Names that a module or a class defines, with what they stand for."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
            yield from ((name.id, node) for name in names if isinstance(name, ast.Name))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[":".join(filter(None, pair)) for pair in NAMED])
def test_what_is_named_exists(file, name):
    path = place(file)
    assert path is not None, f"there is no {file}"
    node = ast.parse(path.read_text(encoding="utf-8")) if name else None
    for part in filter(None, name.split(".")):
        found = dict(defined(node.body))
        assert part in found, f"{file} defines no {name}"
        node = found[part]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_exist(folder):
    assert place(folder) is not None


def test_enough_is_named():
    assert len(NAMED) > 60 and len(FOLDERS) > 3


def test_the_table_of_rooms_is_the_one_that_is_enforced():
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|$", TEXT[TEXT.index("| room |") : TEXT.index("## Follow the data")], re.MULTILINE)
    named = {}
    for rooms, allowed in rows:
        for room, own in zip(re.findall(r"`([\w/]+)(?:\.py)?`", rooms.replace("`convert/`", "")), allowed.split("; ") * 20, strict=False):
            named[room.replace("/", ".")] = set(re.findall(r"`([\w.]+)`", own))
    assert named.keys() == ROOMS.keys() | (FREE - {"__init__"})
    for room, allowed in ROOMS.items():
        if room == "synthetic":
            assert allowed == named[room] | ROOMS["train"] | ROOMS["infer"]
        elif named[room]:
            assert named[room] | {"errors"} == allowed | {"errors"}, room
