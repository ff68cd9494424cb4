"""Exports of a small model: as exact as JAX, put together by the runtime to the same answers and masks, and refused where they do not fit.

Those of StableHLO are tested wherever the tests run, those of ONNX (`make onnx`) where jax2onnx is installed, in an environment of its own.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unipixel_jax.cli import main
from unipixel_jax.errors import UserError
from unipixel_jax.export.to_stablehlo import StableHloProgram
from unipixel_jax.infer.loading import load
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.runtime.backends import OnnxProgram
from unipixel_jax.runtime.manifest import ExportManifest
from unipixel_jax.runtime.session import Runtime

NANO = Path(__file__).parents[1] / "recordings" / "nano_a" / "checkpoint"
DOCS = Path(__file__).parents[2] / "docs" / "export.md"
SHAPES = ["--objects", "2", "--size", "112x112", "--words", "32", "--new-tokens", "4"]
PARITY = 1e-5
"""The largest relative error against JAX; 2.5e-6 was measured."""
BLOCKED = ("jax", "jaxlib", "flax", "orbax", "optax", "transformers", "jinja2", "scipy", "einops", "ml_dtypes", "huggingface_hub", "rich", "cv2", "pycocotools")
WITHOUT_JAX = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name)

sys.meta_path.insert(0, Refusing())
import unipixel_jax.runtime.session
from unipixel_jax.runtime.__main__ import main
sys.exit(main(sys.argv[1:]) if sys.argv[1:] else 0)
"""


ONNX = pytest.mark.parametrize("folder", [pytest.param("onnx", marks=pytest.mark.onnx)], indirect=True)


@pytest.fixture(scope="module", params=["stablehlo", pytest.param("onnx", marks=pytest.mark.onnx)])
def folder(request, tmp_path_factory):
    """The export of a small random model."""
    made = tmp_path_factory.mktemp("export") / "nano"
    assert main(["export", str(NANO), str(made), "--format", request.param, *SHAPES]) == 0
    return made


def opened(folder):
    """The runtime of an export, whose programs JAX runs where they are not ONNX."""
    return Runtime.open(folder, OnnxProgram if list(folder.glob("*.onnx")) else StableHloProgram)


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(NANO, "float32")


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)


def test_every_part_computes_what_jax_does(folder):
    manifest = ExportManifest.read(folder)
    assert list(manifest.parts) == ["encode", "prompt", "decode", "first_frame", "track", "vision", "prefill", "step"]
    for name, part in manifest.parts.items():
        assert part.parity.keys() == {own.name for own in part.outputs}
        assert max(part.parity.values()) < PARITY, name


@pytest.mark.parametrize("prompt", ["Please segment <|seg|>.", "What is <|seg|> beside <|seg|>?"])
def test_the_runtime_answers_and_tracks_as_the_model_does(folder, model, clip, prompt):
    runtime = opened(folder)
    for media in (clip[0], clip):
        expected = model.segment(media, prompt, sample_frames=1, max_new_tokens=4, max_pixels=112 * 112)
        found = runtime.segment(media, prompt)
        assert found.tokens == expected.tokens and found.text == expected.text and found.frames == expected.frames
        assert len(found.objects) == len(expected.objects) >= prompt.count("<|seg|>")
        for ours, theirs in zip(found.objects, expected.objects, strict=True):
            np.testing.assert_array_equal(ours.masks, theirs.masks)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


def test_the_runtime_imports_no_jax():
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX.replace("BLOCKED", repr(BLOCKED))], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@ONNX
def test_a_photo_is_segmented_without_jax(folder, model, clip, tmp_path):
    from PIL import Image

    Image.fromarray(clip[0]).save(tmp_path / "photo.png")
    command = [str(folder), str(tmp_path / "photo.png"), "Please segment <|seg|>.", "--json", str(tmp_path / "found.json")]
    subprocess.run([sys.executable, "-c", WITHOUT_JAX.replace("BLOCKED", repr(BLOCKED)), *command], check=True, timeout=120)
    expected = model.segment(clip[0], "Please segment <|seg|>.", max_new_tokens=4, max_pixels=112 * 112)
    assert json.loads((tmp_path / "found.json").read_text())["text"] == expected.text


@ONNX
def test_no_part_has_an_operator_that_other_compilers_do_not_know(folder):
    import onnx

    from unipixel_jax.export.to_onnx import REFUSED, operators

    documented = {name for line in DOCS.read_text().splitlines() if line.startswith("> `") for name in re.findall(r"`(\w+)`", line)}
    assert not documented & set(REFUSED)
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        assert not operators(model) & set(REFUSED) and operators(model) <= documented
        dtypes = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        assert dtypes <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
        assert {own.version for own in model.opset_import if not own.domain} == {18}


def test_what_does_not_fit_is_refused(folder, clip):
    runtime = opened(folder)
    with pytest.raises(UserError, match=r"no room for this prompt \(3 objects, expected 0 to 2.* export with more --words, --frames or --objects"):
        runtime.segment(clip[0], "<|seg|> <|seg|> <|seg|>")
    with pytest.raises(UserError, match=r"the export has no room for this prompt \(\d+ prompt tokens, expected 0 to \d+: .*"):
        runtime.segment(clip[0], "word " * 200)
    with pytest.raises(UserError, match=r"encode takes frame float32\[1, .*, found float32\[1, 8, 8, 3\]"):
        runtime.run("encode", frame=np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "export.json").unlink(), "holds no export.json: expected a folder made by"),
        (lambda root: (root / "export.json").write_text('{"format": 1, "parts": {}}'), "is not the manifest of an export"),
        (lambda root: (root / "export.json").write_text('{"format": 2}'), "has another format than 1"),
        (lambda root: next(root.glob("encode.*")).write_bytes(b"x"), "is not the file that export.json names"),
        (lambda root: next(root.glob("track.*")).unlink(), "track.* does not exist"),
        (lambda root: _rename(root, "../../etc/passwd"), "no name of a file in the folder"),
    ],
)
def test_a_folder_that_is_no_export_is_refused(folder, tmp_path, change, message):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    change(root)
    with pytest.raises(UserError, match=message):
        opened(root)


def test_onnxruntime_is_given_no_stablehlo(folder):
    if not list(folder.glob("*.onnx")):
        with pytest.raises(UserError, match="holds programs of stablehlo, which JAX runs and no other runtime"):
            Runtime.open(folder)


def test_parts_that_are_not_there_are_named(folder, tmp_path, clip):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    found = json.loads((root / "export.json").read_text())
    del found["parts"]["track"]
    (root / "export.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"the export has no track, which segmenting needs"):
        opened(root).segment(clip[0], "<|seg|>")


def _rename(root, name):
    found = json.loads((root / "export.json").read_text())
    found["parts"]["encode"]["file"] = name
    (root / "export.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "everything"], "there is no part 'everything': expected some of encode, prompt"),
        (["--size", "huge"], "--size 'huge': expected width x height in pixels"),
        (["--objects", "0"], "an export with objects 0 holds nothing"),
        (["--platform", "cpu", "--format", "onnx"], "--platform is for StableHLO"),
        (["--chip", "v5e", "--format", "onnx"], "--chip is for StableHLO"),
        (["--chip", "v5e", "--platform", "tpu"], "--chip v5e makes programs for its own platform: leave --platform out"),
        (["--chip", "v99"], "chip 'v99' is unknown: expected one of v5e"),
        (["--words", "100000"], r"\d+ prompt tokens, expected 0 to 65536"),
        (["--objects", "1000"], "1000 objects, expected 0 to 256"),
    ],
)
def test_an_export_that_cannot_be(tmp_path, capsys, arguments, message):
    arguments = arguments if "--format" in arguments else [*arguments, "--format", "stablehlo"]
    assert main(["export", str(NANO), str(tmp_path / "out"), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chip", "platform", "kernel"), [("v5e", "tpu", b"tpu_custom_call"), ("h100", "cuda", b"__gpu$xla.gpu.triton")])
def test_programs_for_a_chip_that_is_not_here_hold_its_kernels(tmp_path, capsys, chip, platform, kernel):
    folder = tmp_path / "tuned"
    assert main(["export", str(NANO), str(folder), "--format", "stablehlo", "--parts", "vision", "--chip", chip]) == 0
    assert f"not run: there is no {chip} here" in capsys.readouterr().out
    manifest = ExportManifest.read(folder)
    assert (manifest.chip, manifest.platforms, manifest.parts["vision"].parity) == (chip, (platform,), {})
    assert kernel in (folder / "vision.stablehlo").read_bytes()
    with pytest.raises(UserError, match=f"is for {platform}, and this machine computes on cpu: export with --platform cpu"):
        opened(folder).run("vision", **{own.name: np.zeros(own.shape, own.dtype) for own in manifest.parts["vision"].inputs})


def test_a_folder_with_files_is_not_replaced(tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert main(["export", str(NANO), str(tmp_path), "--format", "stablehlo", "--parts", "prompt", *SHAPES]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_without_jax2onnx(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main(["export", str(NANO), str(tmp_path / "out"), "--format", "onnx", "--parts", "prompt", *SHAPES]) == 1
    assert "export --format onnx needs jax2onnx: run pip install 'unipixel-jax[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantised_model_is_refused(tmp_path):
    from unipixel_jax.export.shapes import Shapes
    from unipixel_jax.export.write import export
    from unipixel_jax.hub.resolve import resolve

    quantised = load(resolve(NANO), "float32", how=pytest.importorskip("unipixel_jax.core.quantisation").Quantisation.of("int8"))
    with pytest.raises(UserError, match="quantised"):
        export(quantised, tmp_path / "out", "stablehlo", Shapes(), ("prompt",))
