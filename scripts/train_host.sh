#!/usr/bin/env bash
# Train in a directory that all hosts see, so that relative paths (runs/, data, the start) lie there. Launchers start this script on every host.
#   scripts/train_host.sh [--forward] [--alone] DIRECTORY CONFIG [--field value ...]
# It exits with 143 where SIGTERM ended the training early. The training was saved then, and the same command resumes it; the status tells that from its end.
# It exits with 75 where a process was lost, this one or another. The same command on all hosts resumes the training.
# --forward passes SIGTERM on to the training. Kubernetes needs that, since it signals one process. Slurm and a shutdown signal all, and a second signal kills.
# --alone first ends a training of this configuration that still runs here and holds the devices, which ssh may leave behind. Slurm runs several on a host.
set -uo pipefail

die() {
  echo "$1" >&2
  exit 2
}
code=$(cd "$(dirname "$0")/.." && pwd)
forward=no alone=no
while [[ ${1:-} =~ ^--(forward|alone)$ ]]; do
  printf -v "${1#--}" yes
  shift
done
[ $# -ge 2 ] || die "usage: scripts/train_host.sh [--forward] [--alone] DIRECTORY CONFIG [--field value ...]"
config=$(cd "$code" && realpath --canonicalize-existing --quiet "$2") || die "$2 does not exist in $code: expected a configuration, such as configs/unipixel_7b_stage3.py"
cd "$1" || die "$1 cannot be entered: expected a mounted bucket or a folder of a shared file system"

if [ $alone = yes ] && former=$(pgrep --oldest --uid "$UID" --full "unipixel-jax train $config"); then
  echo "ending the training that still runs here, process $former" >&2
  kill -TERM "$former"
  for _ in {1..300}; do # seconds for the rest of a step and a save
    kill -0 "$former" 2>/dev/null || break
    sleep 1
  done
  kill -KILL "$former" 2>/dev/null
fi

told=no
trap 'told=yes; [ $forward = no ] || kill -TERM "$training" 2>/dev/null' TERM
trap '' HUP # SIGHUP comes with SIGTERM when a system shuts down under an ssh session
unipixel-jax train "$config" "${@:3}" &
training=$!
while kill -0 "$training" 2>/dev/null; do wait "$training"; done # the trap interrupts a wait
wait "$training"
status=$?
# The status is -1 where bash loses that of a child that ends while the trap runs. The same command then resumes the training, or fails again and says why.
if [ $told = yes ] && { [ $status -eq 0 ] || [ $status -eq -1 ]; }; then status=143; fi
# 134 is JAX's SIGABRT where the first process is lost. 137 is SIGKILL: this process is lost, and the others exit with 75.
if [ $status -eq 134 ] || [ $status -eq 137 ]; then status=75; fi
exit $status
