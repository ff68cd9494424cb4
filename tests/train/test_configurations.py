"""Configuration files: all that ship can be read, and mistakes are named."""

from pathlib import Path

import pytest
from micro_run import micro_config

from unipixel_jax.errors import UserError
from unipixel_jax.train.config import load_config
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
    assert [config.trained for config in stages[:2]] == [("ref",), ("seg",)]
    assert stages[2].optim.sam_encoder_lr == stages[2].optim.sam_decoder_lr == 5e-6
    assert (stages[2].lora.rank, stages[2].lora.alpha, stages[2].lora.dropout) == (128, 256, 0.1)


def test_fields_from_the_command_line():
    config = load_config(CONFIGS[-1], ["--optim.learning-rate", "1e-4", "--data.datasets", "refcoco:2", "--data.draw.sample-frames", "4", "8"])
    assert config.optim.learning_rate == 1e-4
    assert config.data.datasets == "refcoco:2"
    assert config.data.draw.sample_frames == (4, 8)


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
    ],
)
def test_impossible_values(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        micro_config(tmp_path, **changes)
