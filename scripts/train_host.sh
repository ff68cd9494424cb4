#!/usr/bin/env bash
# What a launcher starts on every host: train in a directory that all hosts see, so that relative paths (runs/, data, the start) lie there.
#   scripts/train_host.sh [--forward] DIRECTORY CONFIG [--field value ...]
# Exits with 143 where SIGTERM ended the training early; it was saved, and the same command goes on. So a launcher can tell that from the end of the training.
# --forward hands SIGTERM on to the training: for Kubernetes, which tells one process. Slurm and a system that shuts down tell all; a second signal would kill it.
set -uo pipefail

die() {
  echo "$1" >&2
  exit 2
}
code=$(cd "$(dirname "$0")/.." && pwd)
forward=no
if [ "${1:-}" = --forward ]; then
  forward=yes
  shift
fi
[ $# -ge 2 ] || die "usage: scripts/train_host.sh [--forward] DIRECTORY CONFIG [--field value ...]"
config=$(cd "$code" && realpath --canonicalize-existing --quiet "$2") || die "$2 does not exist in $code: expected a configuration, such as configs/unipixel_7b_stage3.py"
cd "$1" || die "$1 cannot be entered: expected a mounted bucket or a folder of a shared file system"

told=no
trap 'told=yes; [ $forward = no ] || kill -TERM "$training" 2>/dev/null' TERM
trap '' HUP # comes with SIGTERM when a system shuts down under an ssh session
unipixel-jax train "$config" "${@:3}" &
training=$!
while kill -0 "$training" 2>/dev/null; do wait "$training"; done # the trap interrupts a wait
wait "$training"
status=$?
# -1: bash now and then loses the status of a child that ends while the trap runs. The same command goes on, or fails again and tells.
if [ $told = yes ] && { [ $status -eq 0 ] || [ $status -eq -1 ]; }; then status=143; fi
exit $status
