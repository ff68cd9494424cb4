#!/usr/bin/env bash
# Train the small model that ships with the package, put it in its place, and measure it: scripts/train_shapes.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command=${UNIPIXEL_JAX:-.venv/bin/unipixel-jax}
# By default glibc returns large arrays to the system after every step, and allocating them again would take a quarter of the time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1
assets=unipixel_jax/assets/shapes_tiny
"$(dirname "$command")/python" scripts/train_shapes_model.py runs/shapes_tiny_curriculum
"$command" train configs/shapes_tiny.py
"$command" train export runs/shapes_tiny runs/shapes_tiny/model --force
find "$assets" -type f ! -name README.md -delete
"$(dirname "$command")/python" scripts/pack_model.py runs/shapes_tiny/model "$assets"
"$command" eval shapes --json docs/shapes_tiny.json
