#!/usr/bin/env bash
# Build the sdist and the wheel into dist, install each into a new environment, and use it in an empty folder as a user would: scripts/check_package.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
clone=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quiet=(--quiet --disable-pip-version-check)

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install "${quiet[@]}" build twine
# Built from a copy of the files that git knows, so that nothing of the clone gets into it, nor is written into the clone, where an environment may be made meanwhile.
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create --file=- | tar --extract --file=- --directory="$work/source"
rm -rf dist
"$work/build/bin/python" -m build --outdir dist "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$work/build/bin/python" -m twine check --strict dist/*
"$python" -m venv "$work/env"
bin=$work/env/bin
mkdir "$work/empty"
export UNIPIXEL_JAX_CACHE="$work/cache"

use() {
    cd "$work/empty"
    local package
    package=$("$bin/python" -c 'import pathlib, unipixel_jax; print(pathlib.Path(unipixel_jax.__file__).parent)')
    # every file of the package in the clone is there, hidden ones included, and the converter, which lies in a folder of its own
    diff <(cd "$clone/unipixel_jax" && find . -type f -not -path '*/__pycache__/*' | sort) \
        <(cd "$package" && find . -type f -not -path '*/__pycache__/*' -not -path './convert/*' | sort)
    diff <(cd "$clone/convert" && find . -name '*.py' | sort) <(cd "$package/convert" && find . -name '*.py' | sort)
    "$bin/unipixel-jax" demo --output-dir demo
    "$bin/unipixel-jax" segment "$package/assets/photo.png" "Please segment the large blue square." --json answer.json
    "$bin/python" -c 'import json; assert json.load(open("answer.json"))["objects"][0]["areas"][0] > 100'
    test -s demo/demo_photo.png -a -s demo/demo_clip.gif -a -s outputs/photo-objects.png
    "$bin/unipixel-jax" bench attention --help >help.txt
    "$bin/python" -m unipixel_jax.runtime --help >help.txt
    "$bin/unipixel-jax" convert inspect "$package/assets/shapes_tiny"
    rm -r demo outputs answer.json help.txt
}

echo "== the wheel"
"$bin/python" -m pip install "${quiet[@]}" dist/*.whl
(use)
echo "== the sdist"
"$bin/python" -m pip install "${quiet[@]}" --force-reinstall --no-deps dist/*.tar.gz
(use)
echo "the wheel and the sdist in dist work outside the clone"
