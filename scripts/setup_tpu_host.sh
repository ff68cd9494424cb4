#!/usr/bin/env bash
# Mount a bucket at /bucket and install the project into ~/venv, on a host of a TPU pod slice. The script is safe to run again.
#   scripts/setup_tpu_host.sh BUCKET
set -euo pipefail
bucket=${1:?usage: scripts/setup_tpu_host.sh BUCKET}

if ! command -v gcsfuse >/dev/null; then # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
  packages=https://packages.cloud.google.com/apt
  curl --fail --silent --show-error $packages/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $packages gcsfuse-$(lsb_release --codename --short) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
fi
# Metadata is not cached, so that hosts see at once what another one writes, such as its part of a checkpoint.
sudo mkdir -p /bucket
sudo chown "$USER" /bucket
mountpoint --quiet /bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$bucket" /bucket

# The hosts' own Python is older than 3.11, so uv installs a newer one.
python3 -m pip install --quiet --user uv
[ -x ~/venv/bin/python ] || python3 -m uv venv --quiet --python 3.12 ~/venv
python3 -m uv pip install --quiet --python ~/venv/bin/python "$(cd "$(dirname "$0")/.." && pwd)[train,tpu]"
