"""The configuration of a training run as a frozen tree of dataclasses; configs/ holds a file for each experiment."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import runpy
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unipixel_jax.config import UniPixelConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable
from unipixel_jax.core.distributed import HostsConfig
from unipixel_jax.core.mesh import MeshConfig
from unipixel_jax.core.stacking import Remat
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.mixture import parse
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.data.synthetic.source import SHAPES
from unipixel_jax.errors import UserError
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.train.optim import OptimConfig
from unipixel_jax.train.overrides import override


@dataclass(frozen=True)
class StartConfig:
    """Where a run's initial weights come from.

    Attributes:
        checkpoint: a directory made by ``unipixel-jax convert to-jax``, or exported after an earlier stage; None for random weights of ``model``.
        model: the configuration of a model that starts from random weights; None with a checkpoint.
        tokenizer: the folder of that model's tokenizer; None for the tokenizer of the small model that ships with the package.
        size: the size of the model in the checkpoint ("3b" or "7b"), so that a run can be planned without the checkpoint; None reads it from the directory.
    """

    checkpoint: str | None = None
    model: UniPixelConfig | None = None
    tokenizer: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """The data that a run trains on and is validated on.

    Attributes:
        datasets: names of data sets with their repeats, for example ``"refcoco:10,mevis"``; a path names a folder of one's own data.
        root: the folder that holds all data sets (the reference's ``data``).
        validation: data sets whose loss is measured every ``evaluate_every`` steps; None for no validation.
        validation_split: the split of the validation data sets, for example "val"; own data and drawn scenes have "train" only. It may not be trained on.
        validation_batches: how many batches of validation data are measured.
        filters: which samples to leave out.
        draw: how samples are drawn; its ``image_size`` is set to the model's.
        templates: a JSON file of the sentences with which samples ask and answer (data/templates.py); None for the project's own.
        max_tokens: the largest number of tokens of a conversation; longer ones are replaced by others. None for no limit.
        loader: how batches are made in the background.
        buckets: the padded sizes of batches; every combination that occurs compiles a program.
    """

    datasets: str
    root: str = "data"
    validation: str | None = None
    validation_split: str = "train"
    validation_batches: int = 8
    filters: Filters = field(default_factory=Filters)
    draw: DrawOptions = field(default_factory=DrawOptions)
    templates: str | None = None
    max_tokens: int | None = None
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    buckets: BucketTable = BUCKETS


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: the name of the experiment.
        start: where the initial weights come from.
        data: the data to train on and to validate on.
        run_dir: the directory for checkpoints, metrics and the configuration; None for runs/ followed by the name.
        trained: the parts of the model that are trained, by the names in train/trainable.py.
        lora: sizes of the adapters; None for no adapters.
        optim: the optimizer, learning rates, their schedule, decay, clipping.
        losses: weights of the mask losses.
        mesh: how the devices of all hosts are arranged.
        hosts: which processes train together.
        batch_size: the number of samples that run together, over all hosts and devices.
        accumulation: the number of batches whose mean gradient makes one step; the last step of an epoch has what is left of it.
        steps: the number of optimisation steps; None goes by ``epochs``.
        epochs: the number of passes over the data, where ``steps`` is None.
        dtype: the compute dtype; trained weights are stored in float32, frozen ones in this dtype.
        remat: what the backward pass computes again (core/stacking.py).
        offload_optimizer: whether the optimizer's state lies in the hosts' memory between updates, which saves the devices that memory while they compute
            gradients, and takes the time of moving it twice a step.
        dropout: whether dropout and stochastic depth of SAM 2's training, and the dropout of the adapters, are applied.
        sample_objects: the largest number of objects of a sample that are trained; None for all.
        sam2_batch_mode: whether every frame is segmented by itself, without tracking.
        seed: the seed of initial weights, of the order and the random draws of samples, and of dropout.
        log_every: steps between two lines of the log.
        evaluate_every: steps between two evaluations, where there is validation data.
        save_every: steps between two checkpoints; where there is validation data, a multiple or a divisor of ``evaluate_every``.
        keep: how many of the newest checkpoints are kept; the one with the lowest validation loss is kept as well.
    """

    name: str
    start: StartConfig
    data: DataConfig
    trained: tuple[str, ...]
    run_dir: str | None = None
    lora: LoraConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    losses: MaskLossWeights = field(default_factory=MaskLossWeights)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    batch_size: int = 8
    accumulation: int = 1
    steps: int | None = None
    epochs: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Remat = "full"
    offload_optimizer: bool = False
    dropout: bool = True
    sample_objects: int | None = None
    sam2_batch_mode: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 500
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        for name, value in _leaves(self, ""):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}, expected a finite number")
        for name in ("batch_size", "accumulation", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps is {self.steps}, expected at least 1, or None to go by epochs")
        if self.data.validation:
            self._check_validation(self.data.validation)
        if (self.start.checkpoint is None) == (self.start.model is None):
            raise UserError("start needs either a checkpoint to begin from, or the sizes of a model with random weights, and not both")
        if ("lora" in self.trained) != (self.lora is not None):
            raise UserError("LoRA adapters are trained only if both 'lora' is in trained and lora is set: set both, or neither")

    def _check_validation(self, datasets: str) -> None:
        evaluate, save = self.evaluate_every, self.save_every
        if evaluate % save and save % evaluate:
            raise UserError(
                f"evaluate_every is {evaluate} and save_every {save}, expected one to be a multiple of the other: the checkpoint with the lowest validation "
                "loss is kept, and most that are saved would not have been measured"
            )
        both = parse(self.data.datasets).keys() & parse(datasets).keys() - set(SHAPES)  # drawn scenes never repeat
        if both and self.data.validation_split == "train":
            raise UserError(
                f"data.validation names {', '.join(sorted(both))}, whose split 'train' is trained on: set data.validation_split to another (docs/data.md lists "
                "them), or name data that is kept apart"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain JSON, for manifests of checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


PARTS: tuple[Any, ...] = (
    TrainConfig, StartConfig, DataConfig, OptimConfig, LoraConfig, DrawOptions, LoaderOptions, Filters, MaskLossWeights, MeshConfig, HostsConfig,
)  # fmt: skip


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every field that is no configuration itself, by its name on the command line."""
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{spec.name}.")
        else:
            yield prefix + spec.name, value


def load_config(path: str | Path, arguments: list[str]) -> TrainConfig:
    """Return the configuration that a file's ``get_config()`` returns, changed by command-line arguments such as ``--optim.learning-rate 1e-4``.

    Args:
        path: a Python file like those in configs/.
        arguments: command-line arguments; ``--help`` lists all of them.

    Raises:
        UserError: the file is missing, fails, or returns something else; an unknown field is named with the nearest known one.
        SystemExit: an argument is wrong, which is explained, or ``--help`` is among them.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist: expected a Python file with get_config(), as those in configs/")
    try:
        config = runpy.run_path(str(file))["get_config"]()
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{file} has no {error}: expected a function get_config() that gives a TrainConfig") from None
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise UserError(f"{file}: {_explain(error)} (line {line})") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"{file}: get_config() gives a {type(config).__name__}, expected a TrainConfig")
    return override(config, arguments, f"unipixel-jax train {file}")


def _explain(error: Exception) -> str:
    """Return the text of an error; for an unknown field of a configuration it names the nearest known one."""
    text = str(error)
    named = re.search(r"unexpected keyword argument '([^']*)'", text)
    if not isinstance(error, TypeError) or named is None:
        return f"{type(error).__name__}: {text}"
    unknown, cls = named[1], text.split(".", 1)[0].split("(", 1)[0]
    fields = [f.name for kind in PARTS if kind.__name__ == cls for f in dataclasses.fields(kind)]
    near = difflib.get_close_matches(unknown, fields, n=1, cutoff=0)
    return f"{cls} has no field {unknown!r}" + (f", did you mean {near[0]!r}?" if near else "")
