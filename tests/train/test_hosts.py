"""Processes that compute together exchange what they know, and all end when one dies, fails, gets stuck or does not start."""

import json
import re
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from processes import Processes, free_port

from unipixel_jax.core import distributed
from unipixel_jax.core.distributed import LOST, HostsConfig
from unipixel_jax.errors import UserError

WORKER = str(Path(__file__).with_name("hosts_worker.py"))
LOST_SECONDS, STUCK_SECONDS = 6, 8


def pair(folder, behaviours, **changes):
    """Two processes; what is changed for both, or by ``one`` for the second."""
    one = changes.pop("one", {})
    shared = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2, "lost_seconds": LOST_SECONDS} | changes
    told = [shared | {"process_id": 0}, shared | {"process_id": 1} | one]
    return Processes(folder, [[WORKER, json.dumps(hosts), behaviour] for hosts, behaviour in zip(told, behaviours, strict=True)])


def test_what_processes_tell_each_other(tmp_path):
    with pair(tmp_path, ["go", "go"], lost_seconds=600) as processes:
        ended = processes.ended()
    assert [(one.status, one.errors) for one in ended] == [(0, []), (0, [])]
    for one in ended:
        # Gloo says things of its own in between, and breaks lines where it likes
        assert re.findall(r"step \d+: [\d.]+", one.out) == [f"step {step}: 12.0" for step in range(8)]
        (last,) = re.findall(r"\{.*\}", one.out)
        assert json.loads(last) == {"largest": {"tokens": 100, "rows": 8}, "names": ["I am 0", "I am 1"], "stopped": True}


def test_the_status_of_a_loss_is_what_the_launchers_look_for():
    assert LOST == 75


def test_death_of_one_ends_the_other(tmp_path):
    with pair(tmp_path, ["go", "die"]) as processes:
        survivor, dead = processes.ended()
    assert dead.status == -signal.SIGKILL
    assert survivor.status == LOST
    (line,) = survivor.errors
    assert line.startswith("error: waiting for 'alive': no word from process 1 (") and line.endswith(f") for {LOST_SECONDS} s; look there for the reason")


@pytest.mark.slow
def test_death_of_the_coordinator_ends_the_other(tmp_path):
    with pair(tmp_path, ["die", "go"]) as processes:
        dead, survivor = processes.ended()
    assert dead.status == -signal.SIGKILL
    assert survivor.status in (LOST, -signal.SIGABRT)
    assert "which coordinates the others, does not answer" in survivor.err or "the leader task was preempted/died/restarted" in survivor.err


def test_a_failure_is_told_to_the_other(tmp_path):
    with pair(tmp_path, ["go", "fail"]) as processes:
        other, failed = processes.ended()
    assert (other.status, failed.status) == (1, 1)
    assert failed.errors == ["error: the disk is full"]
    (line,) = other.errors
    assert line.startswith("error: process 1 (") and line.endswith(") has ended: the disk is full")


@pytest.mark.slow
def test_one_that_is_stuck_is_named(tmp_path):
    with pair(tmp_path, ["stick", "go"], step_seconds=STUCK_SECONDS) as processes:
        ended = processes.ended()
    assert [one.status for one in ended] == [LOST, LOST]
    lines = [line for one in ended for line in one.errors]
    assert any("process 0 (" in line and "step 5" in line for line in lines)


@pytest.mark.slow
def test_a_barrier_names_who_did_not_come(tmp_path):
    with pair(tmp_path, ["wait", "stick"]) as processes:
        waiting, absent = processes.ended()
    assert (waiting.status, absent.status) == (LOST, LOST)
    (line,) = waiting.errors
    assert line.startswith("error: waiting for 'save': no word from process 1 (") and line.endswith(") for 2 s; look there for the reason")
    (line,) = absent.errors
    assert line.startswith("error: process 0 (") and "waiting for 'save': no word from process 1" in line


def test_a_coordinator_that_is_not_there(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    hosts = {"coordinator_address": address, "num_processes": 2, "process_id": 1, "start_seconds": 2}
    with Processes(tmp_path, [[WORKER, json.dumps(hosts), "go"]]) as processes:
        (ended,) = processes.ended()
    assert ended.status == LOST
    assert ended.errors == [f"error: the coordinator {address} cannot be reached for 2 s: is the first process running there, and the port open?"]


def test_others_that_do_not_start(tmp_path):
    hosts = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2, "process_id": 0, "start_seconds": 2}
    with Processes(tmp_path, [[WORKER, json.dumps(hosts), "go"]]) as processes:
        (ended,) = processes.ended()
    assert ended.status == LOST
    assert ended.errors == ["error: not all processes have started within 2 s: look at the logs of the others, or raise hosts.start_seconds"]


@pytest.mark.slow
def test_another_number_of_processes(tmp_path):
    with pair(tmp_path, ["go", "go"], one={"num_processes": 3}, lost_seconds=600) as processes:
        ended = processes.ended()
    assert [one.status for one in ended] == [1, 1]
    assert any("the number of processes was told differently (2 to process 0 (" in line for one in ended for line in one.errors)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator_address": "a:1"}, "hosts.num_processes and hosts.process_id not given: set all of"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "hosts.process_id is 2 of 2 processes, expected 0 to 1"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 1}, "hosts.coordinator_address is 'a', expected HOST:PORT"),
        ({"lost_seconds": 0}, "hosts.lost_seconds is 0, expected at least 1"),
    ],
)
def test_numbers_that_do_not_fit(fields, message):
    with pytest.raises(UserError, match=message):
        HostsConfig(**fields)


def test_one_process_needs_nothing():
    with distributed.connected(HostsConfig()):
        assert distributed.gather("own", "a") == ["a"]
        assert distributed.max_over_processes("sizes", {"rows": 3}) == {"rows": 3}
        assert distributed.any_process("stop", True) and not distributed.any_process("stop", False)


class Device(NamedTuple):
    process_index: int
    id: int


class Places:
    """Stands for a sharding of rows: which rows lie on which device, of which process."""

    def __init__(self, *rows_of_processes):
        self.rows = [(process, rows) for process, devices in enumerate(rows_of_processes) for rows in devices]

    def devices_indices_map(self, shape):
        return {Device(process, number): (slice(*rows),) for number, (process, rows) in enumerate(self.rows)}


@pytest.mark.parametrize(
    ("rows_of_processes", "shares"),
    [
        ([[(0, 1), (1, 2)], [(2, 3), (3, 4)]], [(0, 2), (1, 2)]),
        ([[(0, 1), (2, 3)], [(1, 2), (3, 4)]], [(0, 2), (1, 2)]),
        ([[(0, 2)], [(0, 2)], [(2, 4)], [(2, 4)]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[(None, None)], [(None, None)]], [(0, 1), (0, 1)]),
    ],
)
def test_each_process_reads_what_its_devices_hold(monkeypatch, rows_of_processes, shares):
    monkeypatch.setattr(jax, "process_count", lambda: len(rows_of_processes))
    found = []
    for process in range(len(rows_of_processes)):
        monkeypatch.setattr(jax, "process_index", lambda own=process: own)
        found.append(distributed.process_shard(Places(*rows_of_processes), 4))
    assert found == shares


@pytest.mark.parametrize(
    ("rows_of_processes", "message"),
    [
        ([[(0, 2), (1, 3)], [(2, 4)]], "some processes share a part of their rows"),
        ([[(0, 1)], [(1, 4)]], "some processes share a part of their rows"),
        ([[(0, 4)], []], "the mesh has devices of 1 of 2 processes"),
    ],
)
def test_rows_that_cannot_be_read_by_hosts(monkeypatch, rows_of_processes, message):
    monkeypatch.setattr(jax, "process_count", lambda: len(rows_of_processes))
    with pytest.raises(UserError, match=message):
        distributed.process_shard(Places(*rows_of_processes), 4)


def test_too_late_to_connect():
    """This process has used its devices already."""
    late = distributed.connected(HostsConfig(f"127.0.0.1:{free_port()}", 2, 0))
    with pytest.raises(UserError, match=r"cannot be connected: jax.distributed.initialize\(\) must be called before any JAX calls"), late:
        pass
