"""Bad input gets one line, a non-zero exit and no output directory; inspect tells what is there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from converting import main
from tiny_checkpoints import (
    TINY,
    Call,
    FakeTorch,
    as_tensors,
    random_arrays,
    torch_tensor,
    write_adapter,
    write_checkpoint,
    write_qwen,
    write_sam2,
    write_torch,
)

from unipixel_jax.config import SAM2_SIZES
from unipixel_jax.convert import output, tensors
from unipixel_jax.convert.safetensors_io import write_safetensors


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


@pytest.fixture
def source(tmp_path, arrays):
    return write_checkpoint(tmp_path / "source", arrays)


def refused(capsys, *args):
    """Run a command that must fail; gives its one line."""
    assert main([str(arg) for arg in args]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def rewrite(source, arrays):
    write_safetensors(source / "model.safetensors", as_tensors(arrays), {})


def test_missing_unexpected_and_misshapen_are_listed_together(tmp_path, source, arrays, capsys):
    changed = dict(arrays)
    del changed["seg_head.0.weight"], changed["model.layers.2.self_attn.q_proj.bias"]
    changed["surprise"] = np.ones(2, np.float32)
    changed["tem_emb.weight"] = np.ones((1, 31), np.float32)
    changed["sam2.no_obj_ptr"] = np.ones((1, 32), np.int64)
    rewrite(source, changed)
    line = refused(capsys, "to-jax", source, tmp_path / "jax")
    assert "2 missing: model.layers.2.self_attn.q_proj.bias, seg_head.0.weight" in line
    assert "1 unexpected: surprise" in line
    assert "2 misshapen: tem_emb.weight (1, 31), expected (1, 32), sam2.no_obj_ptr I64, expected one of BF16" in line
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda source: shutil.rmtree(source), "does not exist"),
        (lambda source: (source / "config.json").unlink(), "neither config.json nor manifest.json"),
        (lambda source: (source / "config.json").write_text("{"), "is not JSON"),
        (lambda source: (source / "config.json").write_text("[]"), "holds a list"),
        (lambda source: (source / "config.json").write_text('{"model_type": "llama"}'), "another model (model_type 'llama')"),
        (lambda source: (source / "config.json").write_text('{"model_type": "pixel_qwen2_5_vl"}'), "lacks vision_config"),
        (lambda source: (source / "model.safetensors").unlink(), "has no weights"),
        (lambda source: os.truncate(source / "model.safetensors", 100_000), "truncated or damaged"),
        (lambda source: (source / "model.safetensors").write_bytes(b"hello" * 100), "no safetensors file"),
    ],
)
@pytest.mark.parametrize("command", ["to-jax", "inspect"])
def test_wrong_sources(tmp_path, source, capsys, spoil, message, command):
    spoil(source)
    assert message in refused(capsys, command, source, *([tmp_path / "jax"] if command == "to-jax" else []))
    assert not (tmp_path / "jax").exists()


def test_code_in_a_pickle_is_refused(tmp_path, source, arrays, capsys):
    (source / "model.safetensors").unlink()
    fake = FakeTorch()
    state = {name: torch_tensor(fake, array) for name, array in arrays.items()}
    write_torch(source / "pytorch_model.bin", {**state, "x": Call(os.system, f"touch {tmp_path / 'ran'}")}, fake)
    assert "nothing in the file was run" in refused(capsys, "to-jax", source, tmp_path / "jax")
    assert list(tmp_path.iterdir()) == [source]


def test_outputs_that_cannot_be_written(tmp_path, source, capsys, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for target, message in (("file", "is a file"), ("file/inside", "could not be written"), ("full", "--force"), (".", "lies in the output")):
        assert message in refused(capsys, "to-jax", source, tmp_path / target)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    assert "has 0.0 GB of room" in refused(capsys, "to-jax", source, tmp_path / "jax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "source"]


def test_force_replaces_only_when_all_went_well(tmp_path, source, arrays, capsys):
    target = tmp_path / "jax"
    assert main(["to-jax", str(source), str(target)]) == 0
    (target / "preprocessor_config.json").write_text("the old one's")
    capsys.readouterr()
    rewrite(source, {**arrays, "surprise": np.ones(1, np.float32)})
    refused(capsys, "to-jax", source, target, "--force")
    assert (target / "preprocessor_config.json").read_text() == "the old one's"
    rewrite(source, arrays)
    assert main(["to-jax", str(source), str(target), "--force"]) == 0
    assert (target / "preprocessor_config.json").read_text() == '{"patch_size": 14}' and sorted(path.name for path in tmp_path.iterdir()) == ["jax", "source"]


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 1)])
def test_an_interruption_leaves_nothing(tmp_path, source, capsys, monkeypatch, error, status):
    original = tensors.read_file
    seen = []

    def read(path, offset, count):
        seen.append(path)
        if len(seen) > 100:
            raise error
        return original(path, offset, count)

    monkeypatch.setattr(tensors, "read_file", read)
    assert main(["to-jax", str(source), str(tmp_path / "jax")]) == status
    assert capsys.readouterr().err.count("\n") == 1 and len(seen) > 100
    assert list(tmp_path.iterdir()) == [source]


def test_a_killed_conversion_leaves_no_output_and_the_next_one_tidies_up(tmp_path, source):
    program = (
        "import sys, time; from unipixel_jax import cli; from unipixel_jax.convert import to_jax;"
        "to_jax._manifest = lambda *args: time.sleep(60);"  # all but the end is written by then
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        process = subprocess.Popen([sys.executable, "-c", program, "convert", "to-jax", str(source), str(tmp_path / "jax")], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".unipixel-*.part/config.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
        assert err == ("error: interrupted; what was not complete was not written\n" if number == signal.SIGTERM else "")
        assert not (tmp_path / "jax").exists() and len(list(tmp_path.glob(".unipixel-*.part"))) == left
    assert main(["to-jax", str(source), str(tmp_path / "jax")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jax", "source"]


def test_paths_and_options_that_do_not_go_together(tmp_path, source, capsys):
    assert "needs both --qwen DIR and --sam2 FILE" in refused(capsys, "to-jax", "--qwen", source, tmp_path / "x")
    assert "found 1 paths, expected SRC DST" in refused(capsys, "to-jax", source)
    assert "is no adapter" in refused(capsys, "to-jax", source, tmp_path / "x", "--base", source)
    assert "expected a checkpoint directory" in refused(capsys, "to-jax", source / "model.safetensors", tmp_path / "x")
    assert "manifest.json does not exist" in refused(capsys, "to-torch", source, tmp_path / "x")
    assert main(["to-jax", str(source), str(tmp_path / "jax")]) == 0
    capsys.readouterr()
    assert "is converted already" in refused(capsys, "to-jax", tmp_path / "jax", tmp_path / "x")
    manifest = json.loads((tmp_path / "jax" / "manifest.json").read_text())
    (tmp_path / "jax" / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    assert "format 2, layout 'out_in'; this version reads format 1" in refused(capsys, "to-torch", tmp_path / "jax", tmp_path / "x")
    (tmp_path / "jax" / "manifest.json").write_text(json.dumps({**manifest, "tensors": {"a": 1}}))
    assert "is damaged" in refused(capsys, "to-torch", tmp_path / "jax", tmp_path / "x")


def test_verbose_shows_the_traceback(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere"), "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def inspected(capsys, path, status=0):
    assert main(["inspect", str(path), "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(path)]) == status
    assert str(path) in capsys.readouterr().out
    return report


def test_inspect_every_kind(tmp_path, source, arrays, capsys):
    report = inspected(capsys, source)
    assert (report["kind"], report["tensors"], report["dtypes"], report["complete"]) == ("unipixel", 476, {"F32": 476}, True)
    assert report["parameters"] == sum(array.size for array in arrays.values()) and report["nbytes"] == 4 * report["parameters"]
    assert report["model"] == "TINY (vocabulary 512)" and "of its own size" in report["sam2"]

    main(["to-jax", str(source), str(tmp_path / "jax")])
    capsys.readouterr()
    report = inspected(capsys, tmp_path / "jax")
    assert (report["kind"], report["tensors"], report["details"]["torch tensors"], report["complete"]) == ("jax", 366, 476, True)
    assert report["dtypes"] == {"F32": 366} and report["parameters"] == sum(array.size for array in arrays.values())
    shutil.rmtree(tmp_path / "jax" / "params" / "text.embed.weight")
    assert inspected(capsys, tmp_path / "jax", 1)["missing"] == ["text.embed.weight"]

    report = inspected(capsys, write_qwen(tmp_path / "qwen", arrays, TINY, 500))
    assert (report["kind"], report["sam2"], report["complete"]) == ("qwen", None, True)

    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    lora = {name.format("A"): np.ones((2, 64), np.float32), name.format("B"): np.ones((64, 2), ml_dtypes.bfloat16)}
    report = inspected(capsys, write_adapter(tmp_path / "adapter", source, lora, {"seg_head.1.bias": np.ones(64, np.float32)}))
    assert (report["kind"], report["tensors"], report["details"]["LoRA"]) == ("adapter", 3, "rank 2, alpha 8, on 1 weights")
    assert report["details"]["base"].endswith("(found)") and report["dtypes"] == {"F32": 2, "BF16": 1}
    report = inspected(capsys, write_adapter(tmp_path / "odd", source, {}, {"surprise": np.ones(64, np.float32)}), 1)
    assert report["unexpected"] == ["surprise"]


def test_inspect_a_sam2_file(tmp_path, capsys):
    published = random_arrays(replace(TINY, sam2=SAM2_SIZES["tiny"]))
    report = inspected(capsys, write_sam2(tmp_path / "sam2.1_hiera_tiny.pt", published))
    assert (report["kind"], report["sam2"], report["model"], report["complete"]) == ("sam2", "tiny", None, True)


def test_inspect_lists_what_is_missing(source, arrays, capsys):
    rewrite(source, {name: array for name, array in arrays.items() if not name.startswith("msk_proj")} | {"x": np.ones(1, np.float32)})
    report = inspected(capsys, source, 1)
    assert report["missing"] == [f"msk_proj.{i}.{part}" for i in (0, 2) for part in ("bias", "weight")] and report["unexpected"] == ["x"]


def test_inspect_does_not_wait_for_jax(source):
    program = "import sys; from unipixel_jax.cli import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, "convert", "inspect", str(source)], stdout=subprocess.DEVNULL, check=False).returncode == 0
