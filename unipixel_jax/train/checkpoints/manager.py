"""Checkpoints of a training run, on Orbax: written in the background, whole or not there, and read back onto any mesh.

One directory per step holds `state/` (every array of the training state), `manifest/` (see manifest.py) and, where the run is measured, `metrics/`. A step is
written under a temporary name and renamed when it is complete; older steps go only after that, and are renamed out of the way before they are deleted. So
whatever is found under a step's number was complete once. Whether it still is shows in the fingerprints of its arrays.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unipixel_jax.core.distributed import barrier, gather
from unipixel_jax.core.fingerprint import fingerprints
from unipixel_jax.errors import UserError
from unipixel_jax.train.checkpoints.manifest import ArrayInfo, CorruptCheckpointError, Manifest, RunInfo
from unipixel_jax.train.checkpoints.orbax_noise import silence
from unipixel_jax.train.checkpoints.reader import named_leaves, read_manifest, reason, restore_arrays

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Where a run's directory keeps them."""

TRAINED = "trained"
"""The field of the training state that holds the trained weights, by the model's paths."""

TRASH = ".deleted"
"""Where steps that are no longer kept wait for their deletion: a step that was killed half deleted must not look like a step."""

State = TypeVar("State")


@dataclass(frozen=True)
class Best:
    """Which metric a checkpoint is kept for, and whether the larger or the smaller value is better."""

    metric: str
    larger: bool

    def score(self, metrics: Mapping[str, float] | None) -> float:
        """Larger is better; a checkpoint without the metric, or with one that is no number, is the worst."""
        value = metrics.get(self.metric) if isinstance(metrics, Mapping) else None
        return -math.inf if not isinstance(value, (int, float)) or math.isnan(value) else value if self.larger else -value


@dataclass(frozen=True)
class Restored(Generic[State]):
    """A checkpoint that was read.

    Attributes:
        step: optimisation steps done.
        state: like the target, with arrays.
        data: what the data loader's `state()` gave.
    """

    step: int
    state: State
    data: Any


class Checkpoints:
    """The checkpoints of one run. Of several processes, all must make the same calls; one process at a time may write to a directory.

    Args:
        directory: where they lie; it is made if need be.
        run_info: the run.
        keep: how many of the latest to keep, at least 1.
        best: keep the best by this metric too.

    Raises:
        UserError: `keep` is less than 1, the directory cannot be made, or another run writes to it.
    """

    def __init__(self, directory: str | Path, run_info: RunInfo, keep: int, best: Best | None = None) -> None:
        if keep < 1:
            raise UserError(f"keep is {keep}, expected at least 1 checkpoint")
        self._directory, self._run_info = Path(directory).absolute(), run_info
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        if best:
            policies.append(preservation_policy.BestN(get_metric_fn=best.score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=best.score if best else None,
            cleanup_tmp_directories=True,
            todelete_subdir=TRASH,
        )
        silence()
        self._lock = _lock(self._directory)
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=_handlers())
        except Exception as error:  # what Orbax says of its files, the metrics of a step among them
            self._release()
            raise UserError(f"{self._directory} cannot be opened ({reason(error)}): copy it again, or choose another run directory") from None
        self._pending: int | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(step for step in self._manager.all_steps() if step != self._pending)

    def save(self, step: int, state: Any, data: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Start to save. It returns as soon as the arrays are copied to the host, and they may be donated; a save still under way is waited for first.

        To save at once, as before the process must end, call `wait` afterwards. A step that was saved already is not saved again.

        Args:
            step: optimisation steps done.
            state: any tree of arrays.
            data: what the data loader's `state()` gives, the same on all processes: JSON.
            metrics: numbers measured at this step; the one that `best` names decides what is kept.

        Raises:
            UserError: the disk refused this save or the one before it, and what was complete is still there; or the processes' data differs.
        """
        self.wait()
        if step in self.steps:
            return
        arrays = named_leaves(state)
        marks = fingerprints(arrays)
        described = {name: ArrayInfo(str(leaf.dtype), tuple(leaf.shape), marks[name]) for name, leaf in arrays.items()}
        manifest = Manifest(step, self._run_info, described, _agreed(data))
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), manifest=ocp.args.JsonSave(manifest.to_json()))
        self._pending = step
        try:
            self._manager.save(step, args=items, metrics=dict(metrics) if metrics else None, force=True)
        except Exception as error:
            raise self._refused(error) from error

    def wait(self) -> None:
        """Return when what was saved is complete on disk.

        Raises:
            UserError: the disk refused it.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._refused(error) from error
        self._pending = None
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / TRASH, ignore_errors=True)

    def close(self) -> None:
        """Wait for what is under way and stop the threads.

        Raises:
            UserError: the disk refused it.
        """
        try:
            self.wait()
        finally:
            self._manager.close()
            self._release()

    def _release(self) -> None:
        """Let another process write to the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restore(self, target: State) -> Restored[State] | None:
        """The newest checkpoint that is whole. A damaged one is renamed, with a warning, and the one before it is read.

        Args:
            target: the state with jax.ShapeDtypeStruct for its leaves; their shardings say where the arrays go, on this or another mesh.

        Returns:
            What was read; None if there is no checkpoint.

        Raises:
            UserError: the newest is of another run, or has other arrays than the target, or all are damaged.
        """
        self.wait()
        damaged = []
        for step in reversed(self.steps):
            where = self._directory / str(step)
            try:
                manifest = read_manifest(self._directory, step)
                self._run_info.require_same(manifest.run_info, where)
                wanted = named_leaves(target)
                unknown = [name for name in manifest.arrays if name not in wanted]
                if unknown:
                    raise UserError(f"{where} holds {', '.join(unknown[:10])}, which this run does not have. Continue with the configuration that wrote it")
                leaves = restore_arrays(where, wanted, manifest)
            except CorruptCheckpointError as error:
                damaged.append(step)
                aside = self._set_aside(where)
                logger.warning("checkpoint %s is damaged (%s); it is now called %s, and an older one is tried", where, error, aside.name)
                continue
            state = jax.tree.unflatten(jax.tree.structure(target), leaves.values())
            return Restored(step, state, manifest.data)
        if damaged:
            raise UserError(f"{self._directory}: all {len(damaged)} checkpoints are damaged; copy them again, or start anew in another directory")
        return None

    def _set_aside(self, where: Path) -> Path:
        aside = where.with_name(f"damaged-{where.name}")
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            where.rename(aside)
        self._reload()
        return aside

    def _reload(self) -> None:
        """Look at the directory again, on all processes after the first has changed it."""
        barrier("checkpoints changed")
        self._manager.reload()

    def _refused(self, error: Exception) -> UserError:
        """Remove what a failed save left behind, and return the error that tells of it."""
        step, self._pending = self._pending, None
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}", ignore_errors=True)
        self._reload()
        newest = f"the newest complete checkpoint is that of step {self.steps[-1]}" if self.steps else "there is no complete checkpoint yet"
        return UserError(f"{self._directory}: step {step} could not be saved ({reason(error)}); {newest}. Make room or choose another place, then continue")


def _lock(directory: Path) -> int | None:
    """Keep a second run away, which would take the step that this one is writing for what a killed run left. The system frees the lock of a killed process.

    Returns:
        The open file; None on all processes but the first, and on file systems that know no locks.

    Raises:
        UserError: another process holds it, or the directory cannot be made.
    """
    if jax.process_index() != 0:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = os.open(directory.with_name(f".{directory.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror or error}): choose a place where you may write") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, this lock is not kept by children that outlive their parent
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise UserError(f"{directory} is in use by another training process: wait for its end, or choose another run directory") from None
    except OSError:
        os.close(file)
        return None
    return file


def _handlers() -> Any:
    """How Orbax writes each part. The arrays are not compressed: that saves 8% of their bytes, for ten times the work of the host, which makes batches."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
    registry.add("manifest", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


def _agreed(data: Any) -> Any:
    """The state of the data loader, if it is the same on all processes.

    Raises:
        UserError: it is not.
    """
    states = gather("data of a checkpoint", json.dumps(data, sort_keys=True))
    other = next((process for process, state in enumerate(states) if state != states[0]), None)
    if other is not None:
        raise UserError(f"process {other} reads other data ({states[other]}) than process 0 ({states[0]}): give all the same configuration and data")
    return data
