"""Processes that train together: how they find each other, wait for each other, and end together.

It is built on ``jax.distributed``, whose coordination service (in process 0) exchanges strings; nothing here goes through the accelerators. While processes
are connected, a thread of each meets the threads of the others at a barrier every few seconds. So the death of one process, or a failure that one reports,
ends all within ``lost_seconds``, wherever they wait, with an exit status that tells the two cases apart (``LOST``). If process 0 itself dies, the service is
gone, and JAX ends the others at once (jax 0.10.2: SIGABRT, after "Failed to send RPC to coordination service. Either the leader task was
preempted/died/restarted unexpectedly").

In a single process every function returns at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from unipixel_jax.core.jax_internals import cluster_types, distributed_state
from unipixel_jax.errors import UserError

PERIOD = 2.0
"""Seconds between two barriers of the watching threads."""
LOST = os.EX_TEMPFAIL
"""The exit status (75) of ``LostError``: processes that are started again may go on, where after status 1 they would fail again."""


class LostError(UserError):
    """Another process is lost, stuck or did not start in time, or has ended for such a reason."""


@dataclass(frozen=True)
class HostsConfig:
    """Which processes train together, and how long they wait for each other. On a TPU pod and under Slurm, JAX finds the processes by itself.

    Attributes:
        coordinator_address: HOST:PORT of the first process, reachable from all. It is set together with ``num_processes`` and ``process_id``, where JAX
            cannot find the processes by itself (names and meaning as in ``jax.distributed.initialize``).
        num_processes: the number of processes.
        process_id: the number of this process, counted from 0.
        start_seconds: the longest time in which all processes must have started.
        lost_seconds: a process that does not answer for so long is lost, and the others end.
        step_seconds: the longest time of a step, including compilation, a save, an evaluation and the wait for data.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    start_seconds: int = 300
    lost_seconds: int = 100
    step_seconds: int = 1800

    def __post_init__(self) -> None:
        three = {name: getattr(self, name) for name in ("coordinator_address", "num_processes", "process_id")}
        missing = [f"hosts.{name}" for name, value in three.items() if value is None]
        if 0 < len(missing) < 3:
            raise UserError(f"{' and '.join(missing)} not given: set all of coordinator_address, num_processes and process_id, or none")
        if self.num_processes is not None and self.process_id is not None and not 0 <= self.process_id < self.num_processes:
            raise UserError(f"hosts.process_id is {self.process_id} of {self.num_processes} processes, expected 0 to {self.num_processes - 1}")
        if self.coordinator_address is not None and not self.coordinator_address.rpartition(":")[2].isdecimal():
            raise UserError(f"hosts.coordinator_address is {self.coordinator_address!r}, expected HOST:PORT of the first process")
        for name in ("start_seconds", "lost_seconds", "step_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"hosts.{name} is {getattr(self, name)}, expected at least 1")


@dataclass
class _Run:
    """What this process knows of its run.

    Attributes:
        config: the limits of time.
        names: the names of all processes, in their order.
        place: what this process is doing, in words.
        since: when it began to do that, on the clock of ``time.monotonic``.
        ending: a lock that the thread that ends the process takes, so that a single reason is reported.
    """

    config: HostsConfig = HostsConfig()
    names: tuple[str, ...] = ("this process",)
    place: str = "start"
    since: float = dataclasses.field(default_factory=time.monotonic)
    ending: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_run = _Run()
_calls: Counter[str] = Counter()


@contextlib.contextmanager
def connected(config: HostsConfig) -> Iterator[None]:
    """Join the other processes, if there are any, and leave with them. Enter it before anything else is done with JAX.

    Inside, an exception in one of several processes ends all of them, with a line that says the reason and status 1, or ``LOST`` for ``LostError``; the
    ``finally`` blocks of the other processes do not run. All processes also end, with ``LOST``, where one dies, where one spends more than ``step_seconds`` at
    one place (see ``reach``), and where not all have started in time.

    Raises:
        UserError: the others cannot be reached.
    """
    global _run
    _run = _Run(config)
    if not _start(config):
        yield
        return
    stop = threading.Event()
    try:
        _meet()
        threading.Thread(target=_watch, args=(stop,), daemon=True).start()
        yield
        barrier("end")
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):  # of a collective to which another process did not come, most likely: the watch names it
            time.sleep(config.lost_seconds + 2 * PERIOD)
        if not isinstance(error, UserError):
            error = UserError("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        _end(error)
    stop.set()
    jax.distributed.shutdown()


def barrier(name: str, seconds: float | None = None) -> None:
    """Wait until all processes have called it with the same name; see ``gather`` for arguments and errors."""
    gather(name, "", seconds)


def gather(name: str, value: str, seconds: float | None = None) -> list[str]:
    """Exchange strings: return those of all processes, in the order of the processes. All must call it, in the same order among calls of that name.

    Args:
        name: what is exchanged, for messages.
        value: the string of this process.
        seconds: how long to wait for the others; None for ``step_seconds``.

    Raises:
        LostError: it took longer; the message names the processes that are missing.
        UserError: another process has ended with an error.
    """
    client, own, count = _service()
    if count == 1:
        return [value]
    seconds = _run.config.step_seconds if seconds is None else seconds
    number = _calls[name]
    _calls[name] += 1
    folder = f"{name}/{number}/"
    try:
        client.key_value_set(f"{folder}{own}", value)
        if number > 1:
            client.key_value_delete(f"{name}/{number - 2}/{own}")  # all processes have reached the barrier after it, so all have read it
        client.wait_at_barrier(name, int(1000 * seconds))
        found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}
    except jax.errors.JaxRuntimeError as error:
        raise _missing(client, count, name, folder, seconds, error) from None
    return [found[process] for process in range(count)]


def any_process(name: str, value: bool) -> bool:
    """Return whether ``value`` is true on any process; see ``gather``."""
    return "1" in gather(name, str(int(value)))


def max_over_processes(name: str, values: dict[str, int]) -> dict[str, int]:
    """Return the maximum over all processes of the value of every key; all must have the same keys. See ``gather``."""
    everywhere = [json.loads(text) for text in gather(name, json.dumps(values))]
    return {key: max(one[key] for one in everywhere) for key in values}


def reach(place: str) -> None:
    """Record what this process does from now on, in words such as "step 12"; it may take ``step_seconds``."""
    _run.place, _run.since = place, time.monotonic()


def process_shard(sharding: jax.sharding.Sharding, length: int) -> tuple[int, int]:
    """Return the number of the shard of an array's first axis that this process's devices hold, and how many such shards there are.

    Processes that hold the same rows share a number.

    Args:
        sharding: the sharding of the array.
        length: the length of its first axis.

    Raises:
        UserError: a process has none of the devices, or two processes hold some rows in common but not all.
    """
    rows: dict[int, set[int]] = {}
    places: dict[Any, Any] = dict(sharding.devices_indices_map((length,)))
    for device, index in places.items():
        rows.setdefault(device.process_index, set()).update(range(length)[index[0]])
    parts = sorted({tuple(sorted(own)) for own in rows.values()})
    if len(rows) < jax.process_count():
        raise UserError(f"the mesh has devices of {len(rows)} of {jax.process_count()} processes: choose one over all devices, or start fewer processes")
    if sum(map(len, parts)) != length or len({len(part) for part in parts}) > 1:
        raise UserError("some processes share a part of their rows: choose a mesh in which they share all or none (other sizes for tensor and context)")
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def _service() -> tuple[Any, int, int]:
    """Return the client of the coordination service (None for a single process), the number of this process, and the number of processes."""
    state = distributed_state()
    return (state.client, state.process_id, state.num_processes) if state.client is not None else (None, 0, 1)


def _start(config: HostsConfig) -> bool:
    """Initialise ``jax.distributed`` if there are several processes, and return whether there are."""
    if config.num_processes == 1:
        return False
    known: dict[str, Any]
    if config.coordinator_address is not None:
        known = {name: getattr(config, name) for name in ("coordinator_address", "num_processes", "process_id")} | {"cluster_detection_method": "deactivate"}
    else:
        clusters = (cluster for cluster in cluster_types() if cluster.is_env_present() and cluster.get_process_count() > 1)
        cluster = next(clusters, None)
        if cluster is None:
            return False
        known = {"cluster_detection_method": cluster.name}
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM in place of train/interruption.py
    started = threading.Event()
    threading.Thread(target=_require_start, args=(started, config.start_seconds), daemon=True).start()
    try:
        # JAX ends a process with a stack trace where its own limits are exceeded, so they are longer than ours and act only where ours fail.
        jax.distributed.initialize(
            **known,
            initialization_timeout=config.start_seconds + 60,
            heartbeat_timeout_seconds=2 * config.lost_seconds + 30,
            shutdown_timeout_seconds=config.lost_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be connected: {' '.join(str(error).split())[:300]}") from error
    finally:
        started.set()
    return True


def _require_start(started: threading.Event, seconds: int) -> None:
    """End this process where the others have not started in time."""
    if started.wait(seconds):
        return
    address = distributed_state().coordinator_address or "the first process"
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            line = f"not all processes have started within {seconds} s: look at the logs of the others, or raise hosts.start_seconds"
    except (OSError, ValueError):
        line = f"the coordinator {address} cannot be reached for {seconds} s: is the first process running there, and the port open?"
    _end(LostError(line))


def _meet() -> None:
    """Exchange the names of all processes, and check that they were told the same number of processes."""
    count = _service()[2]
    found = [json.loads(text) for text in gather("names", json.dumps([socket.gethostname(), count]), _run.config.start_seconds)]
    _run.names = tuple(f"process {number} ({name})" for number, (name, _) in enumerate(found))
    if len({told for _, told in found}) > 1:
        told = ", ".join(f"{told} to {name}" for name, (_, told) in zip(_run.names, found, strict=True))
        raise UserError(f"the number of processes was told differently ({told}): give all the same hosts.num_processes")


def _missing(client: Any, count: int, name: str, folder: str, seconds: float, error: Exception) -> UserError:
    """Return an error that names the processes that did not reach a barrier."""
    try:
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(folder)}
        told = _ended(client)
    except jax.errors.JaxRuntimeError:
        return LostError(f"waiting for {name!r}: {process_name(0)}, which coordinates the others, does not answer; look at its log")
    missing = [process_name(process) for process in range(count) if process not in here]
    if told is not None:
        return told
    if missing:
        return LostError(f"waiting for {name!r}: no word from {', '.join(missing)} for {seconds:g} s; look there for the reason")
    return LostError(f"waiting for {name!r}: {' '.join(str(error).split())[:300]}")


def _ended(client: Any) -> UserError | None:
    """Return the errors with which other processes have ended as one error, a ``LostError`` where all of theirs are; None where none has ended."""
    told = [json.loads(text) for key, text in client.key_value_dir_get("ended/") if key != f"ended/{_service()[1]}"]
    if not told:
        return None
    line = "; ".join(sorted({line for line, _ in told}))
    return LostError(line) if all(status == LOST for _, status in told) else UserError(line)


def process_name(process: int) -> str:
    """Return what messages call a process: its number and, once the processes have met, its host."""
    return _run.names[process] if process < len(_run.names) else f"process {process}"


def _watch(stop: threading.Event) -> None:
    """Meet the other processes every few seconds; end this process if another is lost or has ended, or if this one is stuck."""
    client = _service()[0]
    limit = _run.config.step_seconds
    while not stop.wait(PERIOD):
        try:
            places = gather("alive", _run.place, _run.config.lost_seconds)
            ended = _ended(client)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            if not stop.is_set():
                _end(error if isinstance(error, UserError) else LostError(f"{error}"))
            return
        if ended is not None:
            _end(ended)
        if time.monotonic() - _run.since > limit:
            where = ", ".join(f"{name} at {place}" for name, place in zip(_run.names, places, strict=True))
            _end(LostError(f"stuck for more than {limit} s ({where}): look at those that are behind, or raise hosts.step_seconds"))


def _end(error: UserError) -> NoReturn:
    """End this process with one line and a status, after the others could read it. JAX's exit handlers, which would wait for the others, do not run."""
    if not _run.ending.acquire(blocking=False):
        time.sleep(10 * PERIOD)  # another thread is ending the process
    client, own, count = _service()
    line, status = f"{error}", LOST if isinstance(error, LostError) else 1
    print(f"error: {line}", file=sys.stderr, flush=True)
    if client is not None and count == len(_run.names):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            said = line if line.startswith("process ") else f"{process_name(own)} has ended: {line}"
            client.key_value_set(f"ended/{own}", json.dumps([said, status]))
        time.sleep(2 * PERIOD)
    sys.stdout.flush()
    os._exit(status)
