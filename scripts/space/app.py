"""The page as a Space. The variable ``UNIPIXEL_MODEL`` names the model; without it the small one answers, which knows drawn shapes only."""

import os
import sys

from unipixel_jax.cli import main

if __name__ == "__main__":
    where = ["--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
    sys.exit(main(["app", *where, "--model", os.environ.get("UNIPIXEL_MODEL", "shapes")]))
