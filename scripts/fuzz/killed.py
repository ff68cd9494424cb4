"""The commands that ``kills.py`` kills, and the checks of what they leave."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .judge import snapshot
from .kinds import ROOT
from .kinds.training import write_config
from .odd_files import copy
from .processes import call

State = Mapping[str, Any]
PHOTO = ROOT / "unipixel_jax" / "assets" / "photo.png"
OLD_PROMPT, NEW_PROMPT = "Please segment the large blue square.", "Please segment the small red circle."
_DATED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files into which Orbax writes the time or the name of a temporary folder, so that their contents are not compared."""


class Job(ABC):
    """A command that is killed, in a folder where an earlier run has written the old outputs."""

    name: str
    argv: tuple[str, ...]

    @abstractmethod
    def prepare(self, seeds: Path) -> None:
        """Write the files that every try starts from."""

    def furnish(self, seeds: Path, folder: Path) -> None:
        """Make the folder of a try."""
        shutil.copytree(seeds, folder)

    @abstractmethod
    def state(self, folder: Path) -> State:
        """Return what is compared of a folder."""

    @abstractmethod
    def lost(self, folder: Path, old: State, new: State, counts: Counter[str]) -> str:
        """Return what is wrong after a kill, or an empty text; count what was found."""

    def unfinished(self, folder: Path, new: State) -> str:
        """Return what is wrong after a run that was not killed, or an empty text."""
        found = self.state(folder)
        wrong = [name for name in {**found, **new} if found.get(name) != new.get(name)]
        return f"after the next run, {', '.join(sorted(wrong)[:5])} is not as after a run alone" if wrong else ""


class Outputs(Job):
    """A command whose outputs are files and folders that are replaced one by one."""

    outputs: tuple[str, ...]

    def state(self, folder: Path) -> State:
        """Return kind and content of all files."""
        return {name: "dated" if name.endswith(_DATED) else what for name, what in snapshot(folder).items()}

    def lost(self, folder: Path, old: State, new: State, counts: Counter[str]) -> str:
        """Return what is wrong: an output that is neither the old nor the new one, or is absent with no old one beside it; or another file that changed."""
        found = self.state(folder)
        for output in self.outputs:
            own = _part(found, output)
            which = "old" if own == _part(old, output) else "new" if own == _part(new, output) else "absent" if not own else "broken"
            beside = {name.split("/")[0] for name in found}
            if which == "absent" and not any(_part(found, name) == _part(old, output) for name in beside):
                return f"{output} is not there, nor is the old one"
            if which == "broken":
                return f"{output} is neither the old nor the new one"
            counts[which] += 1
        others = [name for name, what in old.items() if found.get(name) != what and not any(name == o or name.startswith(f"{o}/") for o in self.outputs)]
        return f"{', '.join(others[:5])} changed" if others else ""


class Convert(Outputs):
    """A conversion that replaces an earlier one."""

    name, argv, outputs = "convert", ("convert", "to-jax", "source", "out", "--force"), ("out",)

    def prepare(self, seeds: Path) -> None:
        """Write a checkpoint to convert, and the conversion of another one that it replaces."""
        from micro_run import MODEL, micro_start

        from unipixel_jax.convert import to_jax, to_torch
        from unipixel_jax.convert.random import random_source
        from unipixel_jax.infer.loading import EMBEDDED

        micro_start(seeds / "out")
        to_jax.convert(random_source(MODEL, EMBEDDED, 1), seeds / "other")
        to_torch.convert(seeds / "other", seeds / "source")
        shutil.rmtree(seeds / "other")
        (seeds / "mine.txt").write_text("of the user")


class Segment(Outputs):
    """The segmentation of a photo again, with another prompt."""

    name, outputs = "segment", ("out/photo-objects.png", "out/found.json", "out/found.npz")
    argv = ("segment", "photo.png", NEW_PROMPT, "--output-dir", "out", "--json", "out/found.json", "--masks", "out/found.npz", "--max-new-tokens", "24")

    def prepare(self, seeds: Path) -> None:
        """Write the photo, and the outputs for the old prompt."""
        copy(PHOTO, seeds / "photo.png")
        (seeds / "out").mkdir()
        (seeds / "out" / "mine.txt").write_text("of the user")
        os.chdir(seeds)
        assert call([*self.argv[:2], OLD_PROMPT, *self.argv[3:]]) == 0


class Train(Job):
    """A training run, from its beginning or from a checkpoint."""

    name, argv = "train", ("train", "config.py")

    def prepare(self, seeds: Path) -> None:
        """Write the model that training starts from, and its configuration."""
        from micro_run import micro_start

        micro_start(seeds / "start")
        write_config(seeds / "config.py", Path("start"))

    def state(self, folder: Path) -> State:
        """Return the names in the run's folders, and the fingerprints of the arrays of the newest checkpoint."""
        checkpoints = folder / "run" / "checkpoints"
        names = {path.name for place in (folder, folder / "run", checkpoints) if place.is_dir() for path in place.iterdir()}
        if not (steps := self._steps(folder)):
            return {name: "there" for name in names}
        manifest = json.loads((checkpoints / str(steps[-1]) / "manifest" / "metadata").read_text())
        return {name: "there" for name in names} | {"arrays": manifest["arrays"], "step": steps[-1]}

    def lost(self, folder: Path, old: State, new: State, counts: Counter[str]) -> str:
        """Return what is wrong: the newest checkpoint is older than it was after the kill before."""
        steps, seen = self._steps(folder), folder.with_suffix(".seen")
        before = int(seen.read_text()) if seen.exists() else 0
        newest = steps[-1] if steps else 0
        seen.write_text(str(newest))
        counts[f"at step {newest}"] += 1
        return f"the checkpoint of step {before} is lost" if newest < before else ""

    def _steps(self, folder: Path) -> list[int]:
        checkpoints = folder / "run" / "checkpoints"
        return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.is_dir() else []


def _part(state: State, place: str) -> dict[str, Any]:
    """Return the part of a state at and below a path, by the names below it."""
    return {name[len(place) :]: what for name, what in state.items() if name == place or name.startswith(f"{place}/")}


JOBS: tuple[Job, ...] = (Convert(), Segment(), Train())
