"""The page as a Space. The variable ``UNIPIXEL_MODEL`` names the model; without it the small one answers, which knows drawn shapes only."""

import os
import sys

from unipixel_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", "--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860"), "--model", os.environ.get("UNIPIXEL_MODEL", "shapes")]))
