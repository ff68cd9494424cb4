# Everything runs in virtual environments made here: .venv (demo, test, lint), .venv-parity (with torch), .venv-newest,
# .venv-lowest (the lowest versions that pyproject.toml allows), .venv-nightly (JAX and flax of last night), .venv-onnx (with jax2onnx),
# .venv-chips (with compilers for TPUs and GPUs), .venv-annotation (with annotation tools).
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= $(shell scripts/find_python.sh)
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo docs docs-serve test test-slow lint package constraints fuzz parity onnx test-newest test-lowest test-nightly chips annotation clean

ENVIRONMENTS := .venv .venv-parity .venv-onnx .venv-newest .venv-lowest .venv-nightly .venv-chips .venv-annotation
PRINT_VERSIONS := -c 'import sys, jax, flax; print("python", sys.version.split()[0], "jax", jax.__version__, "flax", flax.__version__)'

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: .venv/installed-demo  ## segment a photo and a clip that ship with the project, and say where the images are
	@$(BIN)/unipixel-jax demo --output-dir outputs

# The variable silences what mkdocs-material says of its own future at every start (docs/site.md). With --quiet MkDocs would count no warnings.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: .venv/installed-docs  ## build the documentation site into build/site; a warning is an error
	@$(BIN)/mkdocs build
	@echo build/site/index.html

docs-serve: .venv/installed-docs  ## show the documentation site on this machine, and build it again as pages change
	@$(BIN)/mkdocs serve

# Two processes share the files of tests, since compiling, which is most of the work, uses one core. Each takes up to 5 GB.
test: lint  ## ruff, mypy and the tests, without torch
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev  ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

lint: .venv/installed-dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

package:  ## build the sdist and the wheel into dist, and use each in a new environment outside the clone
	@test -n "$(PYTHON)"
	@scripts/check_package.sh $(PYTHON)

constraints: .venv/installed-dev  ## write the versions that are in .venv into constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable >constraints.txt

fuzz: .venv/installed-dev  ## 5,000 mutated files and command lines, then 100 kills amid their work (an hour)
	@$(BIN)/python -m scripts.fuzz
	@$(BIN)/python -m scripts.fuzz.kills

# From pip's default index, which on Linux means a CUDA build of several gigabytes; the tests need only its CPU side. Install a smaller torch into
# .venv-parity first and pip leaves it alone.
parity: .venv-parity/installed-dev,parity  ## add torch, and compare with it live
	@.venv-parity/bin/python -m pytest -q -m torch

# jax2onnx pins an older Orbax, so that it has an environment of its own.
onnx: .venv-onnx/installed-dev,onnx  ## export to ONNX, run that without JAX, and replay recordings through it
	@.venv-onnx/bin/python -m pytest -q -m onnx tests/export tests/parity

test-newest: .venv-newest/installed-dev  ## the tests on the newest Python found here and the newest JAX for it
	@.venv-newest/bin/python $(PRINT_VERSIONS)
	@.venv-newest/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Nearly every dependency is used by these tests: models and tracker, restoring, tokenizers and chat templates, media of every kind, exports, the looks of results.
test-lowest: .venv-lowest/installed-dev  ## tests/unit with the lowest versions that pyproject.toml allows, those of the extras in dev too
	@.venv-lowest/bin/python $(PRINT_VERSIONS)
	@.venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile tests/unit

# JAX_NIGHTLY_INDEX is the address of the package index that JAX's installation guide names for its nightly builds.
test-nightly: .venv-nightly/installed-dev  ## the tests with last night's JAX and the head of flax
	@test -n "$(JAX_NIGHTLY_INDEX)" || { echo "give make JAX_NIGHTLY_INDEX=ADDRESS, the index of nightly builds in JAX's installation guide"; exit 1; }
	@.venv-nightly/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --pre jax jaxlib "flax @ git+https://github.com/google/flax" \
	  --index-url "$(JAX_NIGHTLY_INDEX)"
	@.venv-nightly/bin/python $(PRINT_VERSIONS)
	@.venv-nightly/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The compilers alone: libtpu with the tpu extra; for GPUs, JAX's plugin and ptxas without the libraries that only running needs.
chips: .venv-chips/installed-dev,tpu  ## compile kernels and small plans for TPUs and GPUs that are not here
	@.venv-chips/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(foreach p,plugin pjrt,jax-cuda12-$(p)==$$(.venv-chips/bin/python -c 'import jax; print(jax.__version__)')) nvidia-cuda-nvcc-cu12
	@.venv-chips/bin/python -m pytest -q -m chips

# The packages of annotation tools pin others, so they have an environment of their own. The two servers are on no index: clone them and name the clones.
annotation: .venv-annotation/installed-dev  ## the tests of exports and backends with the annotation tools' own packages
	@test -d "$(LABEL_STUDIO_ML)/label_studio_ml" && test -d "$(X_ANYLABELING_SERVER)/app" || { \
	  echo "clone HumanSignal/label-studio-ml-backend and CVHub520/X-AnyLabeling-Server, and give make LABEL_STUDIO_ML=DIR X_ANYLABELING_SERVER=DIR"; exit 1; }
	@.venv-annotation/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/annotation/requirements.txt
	@LABEL_STUDIO_ML="$(LABEL_STUDIO_ML)" X_ANYLABELING_SERVER="$(X_ANYLABELING_SERVER)" QT_QPA_PLATFORM=offscreen \
	  .venv-annotation/bin/python -m pytest -q -W default -m "not slow" tests/annotation

clean:  ## remove environments, caches and outputs
	rm -rf $(ENVIRONMENTS) outputs build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

.venv-newest/installed-%: PYTHON = $(shell scripts/find_python.sh newest)
.venv-lowest/installed-%: PYTHON = $(shell scripts/find_python.sh oldest)
.venv-newest/installed-%: INSTALL = --upgrade --upgrade-strategy eager

# pip knows no lowest versions; uv does.
.venv-lowest/installed-%: pyproject.toml
	@test -n "$(PYTHON)"
	@test -x .venv-lowest/bin/python || { echo "making .venv-lowest with $(PYTHON)"; $(PYTHON) -m venv .venv-lowest; }
	@echo "installing the lowest versions for unipixel-jax[$*] into .venv-lowest"
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-lowest/bin/python -m uv pip install --quiet --python .venv-lowest/bin/python --upgrade --resolution lowest-direct --editable ".[$*]"
	@touch "$@"

# ENVIRONMENT/installed-EXTRAS: an environment with the project and those extras, made again when pyproject.toml changes.
define environment
$(1)/installed-%: pyproject.toml
	@test -n "$$(PYTHON)"
	@test -x $(1)/bin/python || { echo "making $(1) with $$(PYTHON)"; $$(PYTHON) -m venv $(1); }
	@echo "installing unipixel-jax[$$*] into $(1)"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $$(INSTALL) --editable ".[$$*]"
	@touch "$$@"
endef
$(foreach e,$(filter-out .venv-lowest,$(ENVIRONMENTS)),$(eval $(call environment,$(e))))
