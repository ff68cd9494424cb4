"""Names that training frameworks put their own in front of; tokenizers that are absent or too large; ids beyond the embedding."""

import json
from pathlib import Path

import pytest
from converting import main
from tiny_checkpoints import FakeTorch, load, random_arrays, sam2_state, same_bits, torch_tensor, write_checkpoint, write_tokenizer, write_torch

from unipixel_jax.convert import sources
from unipixel_jax.convert.names import canonical

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


def refused(capsys, *args):
    """Run a command that must fail; gives its one line."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


WRAPPED = {
    "DistributedDataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both the other way round": lambda name: f"_orig_mod.module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "peft twice": lambda name: f"base_model.model.base_model.model.{name}",
    "peft in DeepSpeed": lambda name: f"module.base_model.model.{name}",
    "compiled layers": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}".replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp."),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_names_of_wrapped_models_are_known(tmp_path, arrays, wrap):
    source = write_checkpoint(tmp_path / "source", {wrap(name): array for name, array in arrays.items()})
    assert same_bits({name: tensor.load() for name, tensor in sources.open_checkpoint(source).tensors.items()}, arrays)
    assert main(["inspect", str(source)]) == 0


def test_names_of_a_wrapped_model_come_back(tmp_path, arrays):
    wrapped = {WRAPPED["FSDP"](name): array for name, array in arrays.items()}
    assert main(["to-jax", str(write_checkpoint(tmp_path / "source", wrapped)), str(tmp_path / "jax")]) == 0
    assert main(["to-torch", str(tmp_path / "jax"), str(tmp_path / "torch")]) == 0
    assert same_bits(load(tmp_path / "torch"), wrapped)


def test_a_wrapped_sam2_file(tmp_path, arrays, capsys):
    fake = FakeTorch()
    state = {f"module.{name}": torch_tensor(fake, array) for name, array in sam2_state(arrays).items()}
    path = write_torch(tmp_path / "sam2.pt", {"model": state}, fake)
    assert main(["inspect", str(path)]) == 1
    assert "none of SAM 2.1's published sizes" in capsys.readouterr().err


def test_real_names_have_no_part_of_a_wrapper(arrays):
    assert all(canonical(name) == name for name in arrays)


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.backbone."])
def test_another_prefix_is_named(tmp_path, arrays, capsys, prefix):
    source = write_checkpoint(tmp_path / "source", {prefix + name: array for name, array in arrays.items()})
    line = refused(capsys, "to-jax", source, tmp_path / "out")
    assert f"names begin with '{prefix}', which no checkpoint of the reference has; save the model's own state_dict() and convert that; " in line


def test_no_prefix_is_named_where_names_merely_differ(tmp_path, arrays, capsys):
    changed = {f"other.{i}" if i < 5 else name: array for i, (name, array) in enumerate(arrays.items())}
    assert "begin with" not in refused(capsys, "to-jax", write_checkpoint(tmp_path / "source", changed), tmp_path / "out")


def both(capsys, tmp_path, source):
    """The line by which the dry run and the conversion refuse a source."""
    dry, real = refused(capsys, "to-jax", source, "--dry-run"), refused(capsys, "to-jax", source, tmp_path / "out")
    assert dry == real and not (tmp_path / "out").exists()
    return dry


def test_a_checkpoint_without_a_usable_tokenizer_is_refused_in_a_dry_run_too(tmp_path, arrays, capsys):
    source = write_checkpoint(tmp_path / "source", arrays)
    for name, content, message in (
        ("tokenizer_config.json", "{}", f"{source}: the pad_token"),
        ("tokenizer_config.json", None, f"{source}/tokenizer_config.json"),
        ("tokenizer.json", "{}", f"{source}/tokenizer.json"),
        ("tokenizer.json", None, f"{source} has no tokenizer.json: copy the tokenizer files"),
    ):
        before = (source / name).read_bytes()
        (source / name).unlink()
        if content is not None:
            (source / name).write_text(content)
        assert message in both(capsys, tmp_path, source)
        (source / name).write_bytes(before)
    assert main(["to-jax", str(source), "--dry-run"]) == 0


def test_an_embedding_with_fewer_rows_than_ids_is_refused(tmp_path, arrays, capsys):
    """Torch raises an IndexError at such an id; JAX reads the last row in its place."""
    short = {name: array[:500] if name in ("model.embed_tokens.weight", "lm_head.weight") else array for name, array in arrays.items()}
    source = write_checkpoint(tmp_path / "source", short)
    assert "model.embed_tokens.weight (500, 64), expected (512, 64)" in both(capsys, tmp_path, source)
    (source / "config.json").write_bytes((CASES / "embedding_rows_fewer_than_ids" / "config.json").read_bytes())
    line = both(capsys, tmp_path, source)
    assert "token_id" in line and "the embedding has 500 rows" in line


@pytest.mark.parametrize("place", [None, "text_config"])
@pytest.mark.parametrize("key, value", [("eos_token_id", 512), ("pad_token_id", 100_000), ("eos_token_id", [3, 600]), ("bos_token_id", 512)])
def test_any_id_beyond_the_embedding_is_refused(tmp_path, arrays, capsys, place, key, value):
    source = write_checkpoint(tmp_path / "source", arrays)
    config = json.loads((source / "config.json").read_text())
    (config[place] if place else config)[key] = value
    (source / "config.json").write_text(json.dumps(config))
    assert f"the {key} {value[-1] if isinstance(value, list) else value}, but model.embed_tokens.weight has 512 rows" in both(capsys, tmp_path, source)


def test_a_tokenizer_of_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path, arrays, capsys):
    source = write_checkpoint(tmp_path / "source", arrays)
    write_tokenizer(source, 513, ())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 505 + i, "content": token} for i, token in enumerate(("<|ref|>", "<|seg|>", "<|mem|>"))
    ]
    vocabulary = {word: i for word, i in tokenizer["model"]["vocab"].items() if i not in (505, 506, 507)}
    tokenizer["model"]["vocab"] = vocabulary | {"<|ref|>": 505, "<|seg|>": 506, "<|mem|>": 507}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "the id 512, but the model's embedding has 512 rows" in both(capsys, tmp_path, source)


@pytest.mark.parametrize(
    "name", ["torch_pickle_hash/memo_2e9.pt", "zip_traceback/zip_encrypted.pt", "zip_traceback/zip_method99.pt", "zip_traceback/zip_version.pt"]
)
def test_shared_cases_of_torch_files(capsys, name):
    assert refused(capsys, "inspect", CASES / name).startswith(f"error: {CASES / name} ")
