#!/usr/bin/env bash
# Print a Python of at least 3.11 that can make virtual environments: `python3` if it is one, else the oldest;
# with the argument "oldest" or "newest", that one of all. Interpreters are looked for on the path and among pyenv's.
set -euo pipefail
shopt -s nullglob

candidates=()
for minor in {11..20}; do
  while read -r found; do candidates+=("$found"); done < <(type -ap "python3.$minor" || true)
  candidates+=("${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python3)
done
if [ "${1:-}" = newest ]; then
  for ((i = ${#candidates[@]} - 1; i >= 0; i--)); do reversed+=("${candidates[i]}"); done
  candidates=(${reversed[@]+"${reversed[@]}"})
elif [ "${1:-}" != oldest ]; then
  candidates=(python3 ${candidates[@]+"${candidates[@]}"})
fi
for python in ${candidates[@]+"${candidates[@]}"}; do
  if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$python"
    exit
  fi
done
echo "no Python of 3.11 or later that can make a virtual environment was found; install one, or say which: make PYTHON=/path/to/python" >&2
exit 1
