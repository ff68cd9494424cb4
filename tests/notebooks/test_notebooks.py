"""The notebooks run, and what they show is right: their last cells print numbers, which are checked here, as are the outputs that are committed."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from unipixel_jax.parity import compare
from unipixel_jax.parity.recording import open_recording

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
RECORDINGS = ROOT / "tests" / "recordings"
PICTURES = {"parity": 5, "cuda_and_npu": 2, "segment_track_ask": 6}
"""How many pictures each notebook shows."""
SIZE_LIMIT = 300_000
PRIVATE = re.compile(
    r"(?:^|[\s'\"(=])/(?:home|root|tmp|usr|opt|work|mnt|private|Users|content)/|site-packages|[A-Z]:\\|\b\d{1,3}(?:\.\d{1,3}){3}\b|\w@\w+\.\w"
)
"""Paths of a machine, addresses of hosts and of people."""


def committed(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """Return the text that the cells printed, and the text of the objects that they displayed."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output["text"] if output.output_type == "stream" else str(output.get("data", {}).get("text/plain", ""))


def pictures(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
                    yield np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data[kind]))).convert("RGB"))


def numbers(notebook):
    """The numbers that the last cell prints."""
    (output,) = code_cells(notebook)[-1].outputs
    return json.loads(output.text)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute a notebook in a copy of its folder; each is executed once."""
    root, done = tmp_path_factory.mktemp("project"), {}
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    (root / "tests").mkdir()
    (root / "tests" / "recordings").symlink_to(RECORDINGS)

    def execute(name):
        if name not in done:
            done[name] = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("IPYTHONDIR", str(root / "ipython"))
                NotebookClient(done[name], timeout=900, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}}).execute()
        return done[name]

    return execute


def test_all_notebooks_are_tested():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(PICTURES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in readme for name in PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_committed_outputs_are_whole_and_say_nothing_of_a_machine(name):
    notebook = committed(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    # executed once from top to bottom, after the last change of any cell
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if PRIVATE.search(text)]
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < SIZE_LIMIT
    assert "%pip install" in cells[0].source and "find_spec" in cells[0].source
    shown = list(pictures(notebook))
    assert len(shown) == PICTURES[name]
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 10 for picture in shown)


def test_paths_and_addresses_are_recognised():
    for text in ("/home/me/file", "see '/tmp/x/y'", "lib/site-packages/jax", r"C:\Users", "at 10.1.2.3:80", "me@host.org"):
        assert PRIVATE.search(text), text
    for text in ("cpu, float32, torch 2.14.1+cu130", "images/frames", "1/2", "0.5 0.25"):
        assert not PRIVATE.search(text), text


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "segment_track_ask" else pytest.mark.slow) for name in PICTURES])
def test_committed_outputs_are_those_of_the_code(name, executed):
    ran, kept = executed(name), committed(name)
    assert [cell.source for cell in ran.cells] == [cell.source for cell in kept.cells]
    assert not [output for cell in code_cells(ran) for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert len(list(pictures(ran))) == PICTURES[name]
    assert same_form(numbers(ran), numbers(kept))


def same_form(ran, kept):
    """Whether two trees of numbers have the same keys, lengths, texts and truths, and numbers of the same size: another processor rounds otherwise."""
    if isinstance(ran, dict):
        return ran.keys() == kept.keys() and all(same_form(ran[key], kept[key]) for key in ran)
    if isinstance(ran, list):
        return len(ran) == len(kept) and all(same_form(a, b) for a, b in zip(ran, kept, strict=True))
    if isinstance(ran, float):
        return ran == kept or kept / 10 < ran < kept * 10
    return ran == kept


def test_the_parity_notebook_shows_what_the_recordings_allow():
    found = numbers(committed("parity"))
    for dtype, recording in (("float32", "nano_b"), ("bfloat16", "nano_a_bf16")):
        assert found[dtype]["passed"] is True and found[dtype]["cases"] == len(open_recording(RECORDINGS / recording).cases)
    assert all(1e-8 < found["float32"][kind] < compare.FORWARD for kind in ("text", "multimodal", "sam2_video"))
    assert all(1e-3 < found["bfloat16"][kind] < compare.BF16_HIDDEN for kind in ("text", "vision", "sam2_image"))
    layers = found["gradients by layer"]
    assert [len(layers[tower]) for tower in ("vision tower", "language model", "SAM 2's Hiera")] == [3, 2, 8]
    assert all(0 < error < compare.GRADIENT / 100 for errors in layers.values() for error in errors)
    frames = found["mask logits by frame"]
    assert len(frames["float32"]) == 14 and all(0 < error < compare.FORWARD for error in frames["float32"])
    assert len(frames["bfloat16"]) == 5 and all(1e-3 < error < 2 * compare.BF16_SAM for error in frames["bfloat16"])
    for tower in ("vision tower", "language model"):
        # every block adds its rounding
        errors = found["bfloat16 by block"][tower]
        assert errors == sorted(errors) and 0 < errors[0] < errors[-1] / 2 and errors[-1] < compare.BF16_HIDDEN


def test_the_device_notebook_says_what_its_recordings_are_and_where_they_differ():
    notebook = committed("cuda_and_npu")
    found = numbers(notebook)
    assert found["devices"] == [open_recording(RECORDINGS / name).description["device"] for name in ("nano_a", "nano_a_bf16")]
    assert found["devices"] != ["cuda", "npu"] and any("not recordings of CUDA and NPU, but of cpu and cpu" in text for text in texts(notebook))
    cases = len(open_recording(RECORDINGS / "nano_a_bf16").cases)
    assert found["cases"] == {"compared": cases + 1, "replayed": [cases, cases]} and found["passed"] == [True, True, True]
    assert len(found["blocks"]) == 13
    for between, first, second in found["blocks"].values():
        assert 0 < first < compare.FORWARD and 1e-3 < between < 2 * compare.BF16_SAM
        # the recording in float32 is where we are, so that the other one is as far from it as from us
        assert 0.5 < between / second < 2 and between > 1000 * first
    parts = ("embeds", "merger_input", "merger_input_window_order")
    assert found["programs"].keys() == {f"vision_window_edges {part}" for part in parts} | {f"sam2_image fpn.{level}" for level in range(3)}
    assert all(0 < value < compare.FORWARD for value in found["programs"].values())
    assert [len(values) for values in found["frames"].values()] == [5, 5, 5]
    assert all(1e-4 < value < 0.1 for values in found["frames"].values() for value in values)


def test_the_inference_notebook_finds_the_objects(executed):
    found = numbers(executed("segment_track_ask"))
    assert all(value > 0.9 for value in found["photo"].values()) and len(found["photo"]) == 3
    clip = found["clip"]
    assert len(clip["tracked"]) == 8 and max(clip["tracked"]) > 0.85
    assert clip["after a click"] > clip["tracked"][4] + 0.1
    assert clip["after a box"] < 0.1, "the small model understands boxes now: say so in the notebook"
    assert all(value > 0.9 for value in clip["last frame"].values())
    assert found["answers"] == {
        "What is <region>?": "It is a large green triangle.",
        "Which is larger, <region> or <region>?": "[1] is larger.",
        "Do <region> and <region> have the same shape?": "[0] is a triangle, [1] is a triangle: yes.",
        "Please segment the large blue square.": "It is the large blue square<|seg|>.",
        "Segment the small red circle.": "It is the small red circle<|seg|>.",
        "Which is larger, [0] or [1]?": "[0] is larger.",
    }
