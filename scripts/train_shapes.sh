#!/usr/bin/env bash
# Train the small model that ships with the package, put it in its place, and measure it: scripts/train_shapes.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command=${UNIPIXEL_JAX:-.venv/bin/unipixel-jax}
assets=unipixel_jax/assets/shapes_tiny
"$(dirname "$command")/python" scripts/teach_towers.py runs/shapes_tiny_towers
for stage in shapes_tiny_language shapes_tiny; do
    "$command" train "configs/$stage.py"
    "$command" train export "runs/$stage" "runs/$stage/model" --force
done
rm -rf "$assets"
cp -r runs/shapes_tiny/model "$assets"
"$command" eval shapes --json docs/shapes_tiny.json
