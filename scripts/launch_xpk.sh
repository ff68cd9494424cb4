#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster made by xpk. The cluster mounts the bucket at /bucket; docs/launch.md says how.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch_common.sh

usage="usage: scripts/launch_xpk.sh --name NAME --cluster CLUSTER --type TYPE [--slices N] [--project PROJECT] [--zone ZONE] [--dry-run] CONFIG [--field value ...]"
name='' cluster='' type='' slices=1 place=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --name | --cluster | --type | --slices | --project | --zone)
      [ -n "${2:-}" ] || die "$1 needs a value; $usage"
      case $1 in
        --project | --zone) place+=("$1=$2") ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift
      ;;
    --dry-run) dry_run=yes ;;
    *) die "$1 is unknown; $usage" ;;
  esac
  shift
done
for option in name cluster type; do [ -n "${!option}" ] || die "--$option is missing; $usage"; done
[[ -f ${1:-} && $1 != /* ]] || die "'${1:-}' is no file below the project: expected a configuration such as configs/unipixel_7b_stage3.py; $usage"

# xpk copies this folder into the image.
code=$(mktemp -d)
trap 'rm -rf "$code"' EXIT
code_files | tar --extract --directory="$code"

# A pod that was told to stop exits with 143, and one that has lost another with 75. Both must start again; by itself xpk does so only for 42 and 127 to 255.
run xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$type" --num-slices="$slices" "${place[@]}" \
  --base-docker-image=python:3.12 --script-dir="$code" --max-restarts=50 --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
  --command="pip install --quiet .[train,tpu] && exec scripts/train_host.sh --forward /bucket $(quoted "$@")"
