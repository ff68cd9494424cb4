"""Commands where the packages of the extras are not installed. (optax and orbax always are, since flax needs them.)"""

import subprocess
import sys

import pytest

WITHOUT_EXTRAS = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"grain", "tensorflow_datasets", "array_record", "qwix", "av", "pyarrow", "pycocotools", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from unipixel_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*command):
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, *command], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["models", "attention"])
def test_benchmarks_of_models_and_kernels_need_no_extra(command):
    done = run("bench", command, "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--repeats" in done.stdout


@pytest.mark.parametrize("command", [("bench", "train"), ("bench", "step"), ("train",)])
def test_a_missing_extra_is_named(command):
    done = run(*command, "configs/finetune_tiny.py")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: training needs ") and done.stderr.strip().endswith("run pip install 'unipixel-jax[train]'")


def test_the_service_names_its_extra():
    done = run("serve", "--port", "0")
    assert (done.returncode, done.stderr) == (1, "error: serve needs av: run pip install 'unipixel-jax[serve]'\n")
