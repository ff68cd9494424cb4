"""docs/finetune.md, followed to the letter with twenty images; only the number of steps differs."""

import csv
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from blocks import ROOT, blocks, environment
from PIL import Image

from unipixel_jax.data.synthetic.scene import SIDE, draw_scene
from unipixel_jax.infer.loading import EMBEDDED

IMAGES, NAMES = 20, ("one", "two")
STEPS = ["--steps", "2", "--log-every", "1"]


def guide():
    """The commands of the guide for the small model, in their order, without comments."""
    lines = [line for block in blocks("docs/finetune.md") if not block.reason for line in block.text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("unipixel-jax ")]


@pytest.fixture
def photos(tmp_path):
    """A folder as in the guide: half of the masks have one object, 0 and 255, and half have a number for each object."""
    folder = tmp_path / "photos"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(IMAGES):
        name = NAMES[number] if number < len(NAMES) else f"image_{number}"
        scene = draw_scene(np.random.default_rng(number))
        Image.fromarray(scene.frames[0]).save(folder / "images" / f"{name}.jpg")
        sentences = [f"the {thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
        if number % 2:
            mask = sum(object * part[0].astype(np.uint8) for object, part in enumerate(scene.masks, start=1))
            rows += [(name, sentence, object) for object, sentence in enumerate(sentences, start=1)]
        else:
            mask = 255 * scene.masks[0, 0].astype(np.uint8)
            rows.append((name, sentences[0]))
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    with (folder / "sentences.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def command(arguments, folder):
    """Run a command as on a laptop; return what it wrote to both outputs."""
    done = subprocess.run([sys.executable, "-m", "unipixel_jax.cli", *arguments], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def checksums(directory):
    return {name: tensor["crc32"] for name, tensor in json.loads((directory / "manifest.json").read_text())["tensors"].items()}


@pytest.mark.slow
def test_the_guide(photos, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    check, train, export, segment = guide()
    assert re.search(r"photos\W+16\W+0\W", command(check, tmp_path)[0]), "16 samples were drawn, and none failed"
    assert "2 steps" in command([*train, *STEPS], tmp_path)[1]
    assert "adapters merged" in command(export, tmp_path)[0]
    before, after = checksums(EMBEDDED), checksums(tmp_path / "tuned")
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and all(any(part in name for name in changed) for part in (".self_attn.q_proj.weight", "seg_head", "sam2."))
    assert not any("embed_tokens" in name or "layernorm" in name for name in changed)
    assert "outputs/one-objects.png" in command(segment, tmp_path)[0]
    with Image.open(tmp_path / "outputs" / "one-objects.png") as overlay:
        assert overlay.size[0] >= SIDE
