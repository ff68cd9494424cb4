"""The kinds of cases. Their sound files are made by the writers of the tests and of the sample data."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / folder) for folder in ("scripts", "tests/convert", "tests/train")]
