#!/usr/bin/env bash
# Rent a TPU pod slice, train on all of its hosts, rent it again when it is taken away, and give it back at the end of the training. See docs/launch.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch_common.sh

usage="usage: scripts/launch_tpu_pod.sh --name NAME --zone ZONE --type TYPE --bucket BUCKET [--runtime VERSION] [--spot] [--dry-run] CONFIG [--field value ...]"
name='' zone='' type='' bucket='' runtime=tpu-ubuntu2204-base spot=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --name | --zone | --type | --bucket | --runtime)
      [ -n "${2:-}" ] || die "$1 needs a value; $usage"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --spot) spot=(--spot) ;;
    --dry-run) dry_run=yes ;;
    *) die "$1 is unknown; $usage" ;;
  esac
  shift
done
for option in name zone type bucket; do [ -n "${!option}" ] || die "--$option is missing; $usage"; done
[[ -f ${1:-} && $1 != /* ]] || die "'${1:-}' is no file below the project: expected a configuration such as configs/unipixel_7b_stage3.py; $usage"

code=$(mktemp -d)
trap 'rm -rf "$code"' EXIT

queued() { run gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
create() { queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}"; }
give_back() { queued delete --force --quiet; }
on_hosts() { run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
train() {
  run gcloud compute tpus tpu-vm scp "$code/unipixel_jax.tar" "$name:" --zone="$zone" --worker=all &&
    on_hosts "mkdir -p unipixel_jax && tar -xf unipixel_jax.tar -C unipixel_jax && unipixel_jax/scripts/setup_tpu_host.sh $(quoted "$bucket")" &&
    on_hosts "PATH=~/venv/bin:\$PATH unipixel_jax/scripts/train_host.sh --alone /bucket $(quoted "$@")"
}
state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>"$code/error" ||
    { grep --quiet NOT_FOUND "$code/error" && echo ABSENT; } || echo UNKNOWN
}

if [ $dry_run = yes ]; then
  create
  train "$@"
  give_back
  exit
fi
code_files >"$code/unipixel_jax.tar"
losses=0
while true; do
  case $(state) in
    ABSENT) create ;;
    ACTIVE)
      status=0
      train "$@" || status=$?
      [ $status -ne 0 ] || break
      sleep 60 # a slice that is taken away says so by then
      # gcloud exits with the status of the first host that failed: 143 if told to stop and saved, 255 if ssh lost a host, 75 if a process was lost.
      [ $status -ne 75 ] || losses=$((losses + 1))
      if [ "$(state)" = ACTIVE ] && { [[ ! $status =~ ^(75|143|255)$ ]] || [ $losses -gt 50 ]; }; then
        echo "training failed with status $status; $name is still rented, for you to look at. Give it back with:" >&2
        dry_run=yes give_back >&2
        exit $status
      fi
      ;;
    SUSPEND*) give_back ;; # the slice was pre-empted
    FAILED) die "$name cannot be had: gcloud compute tpus queued-resources describe $name --zone=$zone tells why" ;;
    *) sleep 30 ;; # the request waits for its turn
  esac
done
give_back
