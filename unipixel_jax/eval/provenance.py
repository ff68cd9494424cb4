"""What a score was made with: weights, program, machine and protocol, and the file that keeps it beside the score."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from unipixel_jax.core.files import read_json_object
from unipixel_jax.core.stored import weights_digest
from unipixel_jax.eval.benchmarks import Benchmark
from unipixel_jax.eval.samples import Settings
from unipixel_jax.infer.predictor import UniPixel

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers", "pillow")


def identity(benchmark: Benchmark, split: str, settings: Settings, model: UniPixel, samples: int) -> dict[str, Any]:
    """What must not change while a run goes on: the samples, the settings and the weights."""
    return {
        "benchmark": benchmark.name,
        "split": split,
        "samples": samples,
        "settings": asdict(settings),
        "weights": weights_digest(_directory(model)),
        "dtype": str(model.loaded.dtype),
        **({"quantised": asdict(quantisation)} if (quantisation := model.config.quantisation) else {}),
    }


def describe(model: UniPixel, name: str) -> dict[str, Any]:
    """The model's origin, the program's revision, the versions of what computes, and the devices.

    Args:
        model: the model.
        name: what the user called it.
    """
    manifest = read_json_object(_directory(model) / "manifest.json")
    devices = jax.devices()
    return {
        "model": name,
        "source": manifest.get("source"),
        "project": {"version": importlib.metadata.version("unipixel-jax"), "revision": project_revision()},
        "versions": {"python": platform.python_version(), **{package: importlib.metadata.version(package) for package in PACKAGES}},
        "device": {"kind": devices[0].device_kind, "count": len(devices), "platform": devices[0].platform},
        "resolution": {"image_size": model.config.sam2.image_size, "merged_token_pixels": model.config.vision.merge_size},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def project_revision() -> str | None:
    """The commit of the clone that the package is run from; None if it was installed otherwise."""
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head if re.fullmatch(r"[0-9a-f]{40}", head) else None
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="ascii").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8")
        found = re.search(rf"^([0-9a-f]{{40}}) {re.escape(name)}$", packed, re.MULTILINE)
        return found[1] if found else None
    except (OSError, UnicodeDecodeError):
        return None


def _directory(model: UniPixel) -> Path:
    assert model.loaded.directory is not None, "the model was loaded from a directory"
    return model.loaded.directory
