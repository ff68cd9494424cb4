"""Configuration files: all that ship can be read, and mistakes are named."""

import shlex
from pathlib import Path

import pytest
from micro_run import micro_config

from unipixel_jax.data.templates import Templates
from unipixel_jax.errors import UserError
from unipixel_jax.losses.mask import MaskLossWeights
from unipixel_jax.models.lora import LoraConfig
from unipixel_jax.train.config import DataConfig, load_config
from unipixel_jax.train.loaders import run_templates
from unipixel_jax.train.recipes import finetune
from unipixel_jax.train.trainable import trained

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_shipped_configurations(path):
    config = load_config(path, [])
    assert config.name == path.stem
    assert trained(config.trained)
    assert f"unipixel-jax train configs/{path.name}" in path.read_text()
    assert config.to_json()["optim"]["learning_rate"] == config.optim.learning_rate


def test_the_reference_s_stages():
    stages = [load_config(path, []) for path in CONFIGS if "unipixel_3b" in path.stem]
    assert [config.batch_size * config.accumulation for config in stages] == [256, 256, 32]
    assert [config.optim.learning_rate for config in stages] == [1e-3, 1e-3, 2e-5]
    assert [config.optim.clip_norm for config in stages] == [None] * 3, "DeepSpeed's files set no clipping"
    assert load_config(CONFIGS[0].with_name("unipixel_3b_stage1.py"), ["--optim.clip-norm", "1.0"]).optim.clip_norm == 1.0
    assert [config.trained for config in stages[:2]] == [("ref",), ("seg",)]
    assert stages[2].optim.sam_encoder_lr == stages[2].optim.sam_decoder_lr == 5e-6
    assert (stages[2].lora.rank, stages[2].lora.alpha, stages[2].lora.dropout) == (128, 256, 0.1)


def test_fields_from_the_command_line():
    config = load_config(CONFIGS[-1], ["--optim.learning-rate", "1e-4", "--data.datasets", "refcoco:2", "--data.draw.sample-frames", "4", "8"])
    assert config.optim.learning_rate == 1e-4
    assert config.data.datasets == "refcoco:2"
    assert config.data.draw.sample_frames == (4, 8)


def test_fields_of_adapters_from_the_command_line():
    config = load_config(CONFIGS[0].with_name("finetune_tiny.py"), ["--lora.rank", "4", "--steps", "2"])
    assert (config.lora.rank, config.lora.alpha, config.steps) == (4, 32, 2)


def test_sentences_from_the_command_line(tmp_path):
    assert run_templates(load_config(CONFIGS[0], [])) == Templates()
    path = tmp_path / "words.json"
    path.write_text('{"locate": ["{} Where?"]}')
    config = load_config(CONFIGS[0], ["--data.templates", str(path)])
    assert run_templates(config) == Templates(locate=("{} Where?",)) and config.to_json()["data"]["templates"] == str(path)
    path.unlink()
    with pytest.raises(UserError, match=r"words.json does not exist: expected a JSON object with lists of sentences"):
        run_templates(config)


def documented():
    """The trainings that the guides start, each with its fields."""
    lines = [line for page in sorted((CONFIGS[0].parents[1] / "docs").glob("*.md")) for line in page.read_text().splitlines()]
    return sorted({line for line in lines if line.startswith("unipixel-jax train configs/")})


@pytest.mark.parametrize("line", documented())
def test_commands_of_the_guides(line):
    _, _, path, *fields = shlex.split(line, comments=True)
    config = load_config(CONFIGS[0].parents[1] / path, fields)
    given = dict(zip(fields[::2], fields[1::2], strict=True))
    assert str(config.data.datasets) == given.get("--data.datasets", config.data.datasets) and config.name == Path(path).stem


def test_unknown_argument(capsys):
    with pytest.raises(SystemExit):
        load_config(CONFIGS[-1], ["--optim.learning-rat", "1e-4"])
    assert "--optim.learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return TrainConfig(name='a', stepz=3)\n", r"TrainConfig has no field 'stepz', did you mean 'steps'\? \(line 3\)"),
        ("def config():\n    return 1\n", "has no 'get_config'"),
        ("def get_config():\n    return 1\n", "gives a int, expected a TrainConfig"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text("from unipixel_jax.train.config import TrainConfig\n" + text)
    with pytest.raises(UserError, match=message):
        load_config(path, [])


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="does not exist: expected a Python file"):
        load_config(tmp_path / "none.py", [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"trained": ("lora",)}, "LoRA adapters are trained only if"),
        (
            {"data": DataConfig("refcoco:10", validation="reason_seg", validation_split="val"), "evaluate_every": 500, "save_every": 300},
            "evaluate_every is 500 and save_every 300, expected one to be a multiple of the other",
        ),
        (
            {"data": DataConfig("refcoco:10,mevis", validation="refcoco,reason_seg"), "evaluate_every": 300, "save_every": 300},
            "data.validation names refcoco, whose split 'train' is trained on: set data.validation_split to another",
        ),
    ],
)
def test_impossible_values(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        micro_config(tmp_path, **changes)


def test_validation_on_another_split_and_on_scenes_that_are_drawn_anew(tmp_path):
    for data in (DataConfig("refcoco", validation="refcoco", validation_split="val"), DataConfig("shapes_image", validation="shapes_image")):
        assert micro_config(tmp_path, data=data, evaluate_every=6).data.validation


def test_a_fine_tuning_is_measured_where_it_is_saved():
    """So that the best is not always the last."""
    config = finetune("a", "b", "PICTURES")
    assert config.evaluate_every == config.save_every < config.steps


@pytest.mark.parametrize("advice", ["", ". Did you mean 'steps'?"], ids=["Python 3.11", "Python 3.13"])
def test_an_unknown_field_is_named(tmp_path, advice):
    path = tmp_path / "config.py"
    path.write_text(f"def get_config():\n    raise TypeError(\"TrainConfig.__init__() got an unexpected keyword argument 'bach_size'{advice}\")\n")
    with pytest.raises(UserError, match=r"TrainConfig has no field 'bach_size', did you mean 'batch_size'\?"):
        load_config(path, [])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["lora.alpha", "optim.clip-norm", "optim.eps", "losses.dice", "epochs", "data.buckets.tokens.growth"])
def test_numbers_that_are_not_finite_are_refused(name, value):
    """Each of them would make weights, or sizes, that are not numbers."""
    with pytest.raises((UserError, SystemExit)) as caught:
        load_config(next(path for path in CONFIGS if path.stem == "unipixel_3b_stage3"), [f"--{name}={value}"])
    assert isinstance(caught.value, UserError) or caught.value.code != 0


def test_a_number_that_is_not_finite_is_named():
    with pytest.raises(UserError, match=r"lora\.alpha is nan, expected a finite number"):
        micro_config("start", trained=("all", "lora"), lora=LoraConfig(alpha=float("nan")))
    with pytest.raises(UserError, match=r"losses\.dice is inf, expected a finite number"):
        micro_config("start", losses=MaskLossWeights(dice=float("inf")))
