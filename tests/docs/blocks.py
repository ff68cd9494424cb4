"""Fenced blocks of the pages: which there are, which can run here, and running them as a newcomer does, in a folder that looks like the clone."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
IN_THE_CLONE = ("configs", "scripts", "tests", "unipixel_jax")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: what stands behind the fence, or nothing.
        text: the lines within.
        reason: why it cannot run here, from the mark in front of it; nothing where it can.
        shown: the text block that follows at once, which is what the command prints; or nothing.
    """

    language: str
    text: str
    reason: str
    shown: str


def read(page):
    """The text of a page, by its path within the project."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """The blocks of a page in their order."""
    text = read(page)
    found = list(FENCE.finditer(text))
    out = []
    for match, following in zip(found, [*found[1:], None], strict=True):
        at_once = following is not None and following["language"] == "text" and not text[match.end() : following.start()].strip()
        out.append(Block(match["language"], match["text"], match["reason"] or "", following["text"] if at_once else ""))
    return out


def clone(folder):
    """Make a folder look like the clone, so that results lie there and not in the clone."""
    for name in IN_THE_CLONE:
        (folder / name).symlink_to(ROOT / name)
    return folder


def environment():
    """Return the environment variables of the tests, but with one device as on a laptop, and with this installation's commands in the path."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "PATH": path}


def run(block, folder):
    """Run a block of bash or Python in a folder; return what it prints. The first command that fails ends it."""
    words = ["bash", "-euo", "pipefail", "-c", block.text] if block.language == "bash" else [sys.executable, "-c", block.text]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{block.text}\n{done.stderr}"
    return done.stdout


def without_numbers(text):
    """Lines without their numbers, which rounding on another processor may change."""
    return [re.sub(r"\d+(?:\.\d+)?", "#", line).rstrip() for line in text.splitlines()]
