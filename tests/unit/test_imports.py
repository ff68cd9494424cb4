"""Who may import whom. Every import of every file is read from its source, lazy ones inside functions included."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Room -> what it may import of ours, besides itself. An entry allows a module and everything below it; "" is the rest of the package.
BASE = {"errors"}
ARGUMENTS = {"arguments"}
"""The module that a room's cli.py shares with the other commands."""
CONFIG = {"config", *BASE}
INPUTS = {"batch", *CONFIG}
ROOMS = {
    "errors": set(),
    "client": {"processing.prompts", "processing.rle"},
    "arguments": set(),
    "config": {"core.fields", "core.files", "core.quantisation", *BASE},
    "batch": set(),
    "core": BASE,
    "ops": {"core", *BASE},
    "models": {"ops", "core", *INPUTS},
    "losses": {"ops", "core", *CONFIG},
    "processing": {"core.buckets", "core.files", *INPUTS},
    "data": {*ARGUMENTS, "processing", "core.allocator", "core.buckets", "core.files", "core.pickles", *INPUTS},
    "train": {"models", "losses", "data", "processing", "ops", "core", *INPUTS},
    # SAM 2.1 alone is read from its official file, without a converted directory between
    "infer": {"hub", "convert.sam2", "models", "losses", "processing", "ops", "core", *INPUTS},
    # the embedded model's curriculum, which trains and judges through all that stands
    "synthetic": {*ARGUMENTS, "train", "infer", "hub", "convert.sam2", "models", "losses", "data", "processing", "ops", "core", *INPUTS},
    "convert": {"models", "core", "processing", *CONFIG},
    "hub": {"convert", "models", "core", *CONFIG},
    # the host's part of inference, in modules that need no JAX
    "runtime": {"infer.answers", "infer.masks", "infer.prediction", "processing", "core.buckets", "core.files", *INPUTS},
    "export": {*ARGUMENTS, "runtime", "infer", "hub", "convert", "models", "processing", "ops", "core", *INPUTS},
    # predictions come from infer, while scores need numpy alone
    "eval": {"infer", "data", "processing", "core", *ARGUMENTS, *INPUTS},
}
FREE = {"app", "cli", "demo", "parity", "bench", "plan", "convert.cli", "eval.cli", "infer.batch_cli", "infer.chat_cli", "infer.cli"}
FREE |= {"serve", "train.cli", "train.export", "__init__"}
"""These modules put the others together and may import everything."""


def files():
    for folder, package in ((ROOT / "unipixel_jax", "unipixel_jax"), (ROOT / "convert", "unipixel_jax.convert")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield path, ".".join([package, *parts]).removesuffix(".__init__") if parts != ("__init__",) else package


def imports(path, module):
    """Absolute names of what a file imports, and whether at the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", id(node) in top


def room_of(module):
    """The room of a module of ours, and its name inside the package."""
    inside = module.removeprefix("unipixel_jax").lstrip(".")
    return inside.split(".")[0] or "__init__", inside


def within(name, allowed):
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


ALL = list(files())


def test_every_file_lies_in_a_room_with_rules():
    assert len(ALL) > 50
    assert {room_of(module)[0] for _, module in ALL} <= ROOMS.keys() | FREE


@pytest.mark.parametrize(("path", "module"), ALL, ids=[module for _, module in ALL])
def test_imports_follow_the_plan(path, module):
    room, own = room_of(module)
    for name, _ in imports(path, module):
        if not within(name, {"unipixel_jax"}) or room in FREE or own in FREE:
            continue
        target_room, inside = room_of(name)
        assert target_room == room or within(inside, ROOMS[room]), f"{module} imports {name}"


@pytest.mark.parametrize(("path", "module"), ALL, ids=[module for _, module in ALL])
def test_nobody_imports_torch_and_the_host_side_imports_no_jax(path, module):
    never = {"torch", "torchvision", "torch_npu"}
    if room_of(module)[0] in ("processing", "data", "errors", "config", "batch", "client", "runtime"):
        never |= {"jax", "jaxlib", "flax", "orbax", "optax"}
    for name, _ in imports(path, module):
        assert not within(name, never), f"{module} imports {name}"


@pytest.mark.parametrize(("path", "module"), ALL, ids=[module for _, module in ALL])
def test_commands_alone_import_the_curriculum_of_the_embedded_model(path, module):
    if room_of(module)[0] not in ("synthetic", "cli", "demo"):
        assert not [name for name, _ in imports(path, module) if within(name, {"unipixel_jax.synthetic"})]


@pytest.mark.parametrize(("path", "module"), ALL, ids=[module for _, module in ALL])
def test_one_module_imports_the_internals_of_jax(path, module):
    if module != "unipixel_jax.core.jax_internals":
        assert not [name for name, _ in imports(path, module) if within(name, {"jax._src", "jaxlib"})]


def circles(graph):
    """Groups of modules that import each other, directly or through others, each sorted."""
    reached = {module: set(graph[module]) for module in graph}
    for through in graph:
        for module in graph:
            if through in reached[module]:
                reached[module] |= reached[through]
    return sorted({tuple(sorted(other for other in reached[module] if module in reached[other])) for module in graph if module in reached[module]})


def test_no_modules_import_each_other():
    """Imports inside functions count too: what has to be imported late to work at all lies in the wrong module."""
    known = {module for _, module in ALL}
    graph = {module: set() for module in known}
    for path, module in ALL:
        for name, _ in imports(path, module):
            while name and name not in known:
                name = name.rpartition(".")[0]
            graph[module] |= {name} & known - {module}
    assert circles(graph) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "e"}, "d": {"d2"}, "d2": {"d"}, "e": set()}
    assert circles(graph) == [("b", "c"), ("d", "d2")]


def test_transformers_is_imported_in_one_place_when_it_is_needed():
    found = {(module, top) for path, module in ALL for name, top in imports(path, module) if within(name, {"transformers"})}
    assert found == {("unipixel_jax.processing.hugging_face", False)}


def test_the_rules_see_what_they_forbid(tmp_path):
    """The file breaks every rule, so that a rule that is not enforced is noticed."""
    path = tmp_path / "bad.py"
    path.write_text("from ...convert import rules\nfrom unipixel_jax.train import step as s\ndef f():\n    import torch.nn as nn\n")
    assert dict(imports(path, "unipixel_jax.models.sam2.bad")) == {
        "unipixel_jax.convert.rules": True,
        "unipixel_jax.train.step": True,
        "torch.nn": False,
    }
    assert not within("convert.rules", ROOMS["models"]) and within("core.axes", ROOMS["models"])
    assert not within("core.axes", ROOMS["processing"]) and within("core.buckets.Buckets", ROOMS["processing"])


@pytest.mark.parametrize("module", ["unipixel_jax", "unipixel_jax.cli", "unipixel_jax.client", "unipixel_jax.config", "unipixel_jax.processing.batch"])
def test_importing_is_cheap(module):
    heavy = "{'jax', 'flax', 'orbax', 'torch', 'transformers', 'huggingface_hub', 'fastapi'}"
    code = f"import {module}\nimport sys\nprint(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_public_api_can_be_imported():
    import unipixel_jax

    for name in unipixel_jax.__all__:
        assert getattr(unipixel_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Unipixel'"):
        unipixel_jax.Unipixel  # noqa: B018


DISTRIBUTIONS = {
    "PIL": "pillow", "absl": "absl-py", "cv2": "opencv-python-headless", "jaxlib": "jax", "orbax": "orbax-checkpoint", "pi_heif": "pi-heif",
    "multipart": "python-multipart", "tensorflow_datasets": "tensorflow-datasets",
}  # fmt: skip
"""The packages of modules that have another name."""
UNPACKAGED = ("acl",)
"""Modules that come with a vendor's software and are on no index."""
NEED = {
    "app": "app", "client": "client", "data": "train", "export.to_onnx": "onnx", "export.to_stablehlo": "stablehlo", "infer.sound": "video", "parity": "train",
    "processing.video": "video", "runtime.backends": "runtime", "serve": "serve", "synthetic": "train", "train": "train",
}  # fmt: skip
"""The extra that a room or module needs. Users without it are told by `errors.needing`, or by the function that imports the module."""


def declared(requirements):
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize(("path", "module"), ALL, ids=[module for _, module in ALL])
def test_what_is_imported_of_others_is_declared(path, module):
    """Imports at the top of a file are in every installation, or in the extra of its room; those inside functions are in some extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core, extras = declared(project["dependencies"]), project["optional-dependencies"]
    own = next((declared(extras[extra]) for need, extra in NEED.items() if within(room_of(module)[1], {need})), set())
    for name, top in imports(path, module):
        root = name.split(".")[0]
        if root in sys.stdlib_module_names or root in ("unipixel_jax", "__future__", *UNPACKAGED):
            continue
        allowed = core | own if top else core.union(*(declared(extras[extra]) for extra in extras.keys() - {"dev", "parity"}))
        assert DISTRIBUTIONS.get(root, root) in allowed, f"{module} imports {name}, which pyproject.toml does not declare for it"


def test_videos_are_opened_by_those_who_have_the_extra_only():
    assert not [module for path, module in ALL for name, top in imports(path, module) if top and within(name, {"unipixel_jax.processing.video"})]


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(module for path, module in ALL if path.name == "__init__.py")
