"""The whole pipeline on small data sets: from names to arrays, on one host and on several, in threads and in processes."""

import dataclasses
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from marked_samples import TOKENIZER, write

from unipixel_jax.cli import main
from unipixel_jax.config import preset
from unipixel_jax.core.buckets import BUCKETS
from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.errors import UserError

CONFIG = preset("tiny")
TALK = "llava_instruct_665k_videogpt_plus_576k"
NAMES = f"videorefer_qa_mem:4,osprey_conversation:3,{TALK}:2"
DRAW = DrawSample(TOKENIZER, CONFIG, DrawOptions(image_size=CONFIG.sam2.image_size))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("videorefer_qa_mem", "osprey_conversation", TALK):
        write(name, root)
    return root


def flat(value, name=""):
    """Every array of a batch, by its name."""
    if dataclasses.is_dataclass(value):
        return {k: v for field in dataclasses.fields(value) for k, v in flat(getattr(value, field.name), f"{name}.{field.name}").items()}
    return {name: value}


def assert_equal(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def take(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def test_batches_of_every_kind(root):
    mixture = open_mixture(NAMES, root, 2)
    loader = open_loader(mixture, DRAW, LoaderOptions())
    batches = take(loader, mixture.steps_per_epoch)
    assert {batch.kind for batch in batches} == {k for k in mixture.kinds if k not in mixture.left_out()}
    for batch in batches:
        arrays, inputs = batch.arrays, batch.arrays.inputs
        sizes = {
            "batch": len(arrays.labels),
            "tokens": inputs.input_ids.shape[-1],
            "patches": inputs.patches.shape[-2],
            "grid_frames": inputs.vision.frame_table.shape[-2],
            "frame_patches": inputs.vision.frame_table.shape[-1],
            "references": inputs.references.frames.shape[-1],
            "memories": inputs.memory_rows.shape[-2],
            "memory_tokens": inputs.memory_rows.shape[-1],
            "objects": inputs.seg_positions.shape[-1],
            "frames": 1 if arrays.clips is None else arrays.clips.frames.shape[2],
        }
        assert (arrays.clips is not None) == batch.kind.startswith("mem_")
        window = DRAW.config.vision.window_patches
        patches = {-(-size // window) * window for size in BUCKETS.patches.sizes}
        assert sizes.pop("patches") in patches, "the sizes of the buckets, made whole windows"
        assert all(size in getattr(BUCKETS, name).sizes for name, size in sizes.items()), "only sizes of the buckets, so the programs are bounded"
        assert len(arrays.samples) == 2 and abs(arrays.label_weights.sum() - 1) < 1e-5
        labelled = arrays.labels != -100
        np.testing.assert_array_equal(labelled, arrays.label_weights > 0)
        np.testing.assert_array_equal(arrays.labels[labelled], arrays.inputs.input_ids[labelled])
    assert any(batch.arrays.inputs.segments.max() == 2 for batch in batches), "short samples share a row"
    assert "broken" in str(loader.failures.reasons) and loader.failures.counts[TALK] > 0


def test_workers_give_the_same_arrays(root):
    here = take(open_loader(open_mixture(NAMES, root, 2), DRAW, LoaderOptions()), 4)
    there = take(open_loader(open_mixture(NAMES, root, 2), DRAW, LoaderOptions(workers=2, threads=1)), 4)
    for ours, theirs in zip(here, there, strict=True):
        assert_equal(ours, theirs)


def test_hosts_agree_on_sizes_and_share_the_batch(root):
    """Two hosts, each a thread, that exchange sizes as hosts of a pod do: arrays of one shape, which hold the samples of the global batch."""
    barrier, told = threading.Barrier(2), [None, None]
    batches = [None, None]

    def run(host):
        def agree(sizes):
            told[host] = sizes
            barrier.wait()
            largest = {name: max(told[0][name], told[1][name]) for name in sizes}
            barrier.wait()
            return largest

        loader = open_loader(open_mixture(NAMES, root, 4), DRAW, LoaderOptions(threads=1), host=host, hosts=2, agree=agree)
        batches[host] = take(loader, 6)

    threads = [threading.Thread(target=run, args=(host,)) for host in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = take(open_loader(open_mixture(NAMES, root, 4), DRAW, LoaderOptions()), 6)
    grown = 0
    for first, second, whole in zip(*batches, alone, strict=True):
        ours, theirs = flat(first.arrays), flat(second.arrays)
        shapes = {name: (array.shape, theirs[name].shape) for name, array in ours.items() if isinstance(array, np.ndarray)}
        assert all(a == b for a, b in shapes.values()), shapes
        assert sorted(first.arrays.samples + second.arrays.samples) == sorted(whole.arrays.samples)
        grown += first.arrays.inputs.input_ids.shape[-1] > BUCKETS.tokens.size(int(first.arrays.inputs.lengths.max()))
        grown += second.arrays.inputs.input_ids.shape[-1] > BUCKETS.tokens.size(int(second.arrays.inputs.lengths.max()))
    assert grown, "the hosts' samples differ in size, so that agreeing matters"


def test_long_conversations_are_replaced(root):
    mixture = open_mixture(TALK, root, 1)
    lengths = {}
    for batch in take(open_loader(mixture, DRAW, LoaderOptions()), mixture.steps_per_epoch):
        lengths.setdefault(batch.kind, set()).add(int(batch.arrays.inputs.lengths.max()))
    limit = max(lengths["multimodal"]) - 1
    assert min(lengths["multimodal"]) < limit
    loader = open_loader(mixture, dataclasses.replace(DRAW, max_tokens=limit), LoaderOptions())
    assert all(batch.arrays.inputs.lengths.max() <= limit for batch in take(loader, 12))
    assert any(f"has {limit + 1} tokens, expected at most {limit}" in reason for reason in loader.failures.reasons.values())


def test_several_hosts_have_to_agree(root):
    with pytest.raises(UserError, match="2 hosts share a batch, so they have to agree on its sizes"):
        open_loader(open_mixture(NAMES, root, 4), DRAW, LoaderOptions(), hosts=2)


def test_data_check_tells_what_is_there_and_what_is_wrong(root, capsys):
    assert main(["data", "check", f"osprey_conversation:3,{TALK}", "--root", str(root), "--all"]) == 1
    shown = capsys.readouterr().out
    assert "osprey_conversation" in shown and "multimodal 4, text 3" in shown
    assert "do not alternate" in shown
    assert main(["data", "check", "osprey_conversation", "--root", str(root), "--samples", "2"]) == 0
    assert "do not alternate" not in capsys.readouterr().out


def test_data_pack_writes_what_training_reads(root, tmp_path, capsys):
    assert main(["data", "pack", f"videorefer_qa_mem,{TALK}", "--root", str(root), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "samples of videorefer_qa_mem in" in shown
    packed = open_mixture(NAMES.replace("videorefer_qa_mem", "tfds:packed/videorefer_qa_mem").split(",")[0], tmp_path, 2)
    original = open_mixture("videorefer_qa_mem:4", root, 2)
    ours, theirs = (take(open_loader(mixture, DRAW, LoaderOptions(workers=0)), 4) for mixture in (packed, original))
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)


def test_what_is_packed_with_filters_takes_the_same_again(root, tmp_path):
    name, filters = f"tfds:packed/{TALK}", Filters(max_frames=500, max_seconds=300, max_words=2)
    options = ["--max-frames", "500", "--max-seconds", "300", "--max-words", "2"]
    assert main(["data", "pack", TALK, "--root", str(root), "--out", str(tmp_path), *options]) == 0
    packed, original = open_mixture(name, tmp_path, 1, filters=filters), open_source(TALK, root, filters=filters)
    assert [packed.annotation(i).name for i in range(len(packed))] == [original[i].name for i in range(len(original))]
    assert 0 < len(packed) < len(open_source(TALK, root))
    assert len(open_source(name, tmp_path)) == len(packed), "without a word about filters, it is what it is"
    with pytest.raises(UserError, match=r"packed with the filters max_frames 500, max_words 2, max_seconds 300\.0, asked for are the filters max_words 3;"):
        open_mixture(name, tmp_path, 1, filters=Filters(max_words=3))
    with pytest.raises(UserError, match="asked for are the filters none;"):
        open_mixture(name, tmp_path, 1, filters=Filters())


def test_what_is_packed_without_filters_takes_none(root, tmp_path):
    assert main(["data", "pack", TALK, "--root", str(root), "--out", str(tmp_path)]) == 0
    assert len(open_source(f"tfds:packed/{TALK}", tmp_path, filters=Filters())) == len(open_source(TALK, root))
    with pytest.raises(UserError, match="packed with the filters none, asked for are the filters max_words 2; expected the same"):
        open_source(f"tfds:packed/{TALK}", tmp_path, filters=Filters(max_words=2))


def test_data_commands_refuse_in_one_line(root, tmp_path, capsys):
    assert main(["data", "check", "nonsense", "--root", str(root)]) == 1
    assert capsys.readouterr().err.startswith("error: there is no source 'nonsense'")
    assert main(["data", "pack", "osprey_conversation:3", "--root", str(root), "--out", str(tmp_path)]) == 1
    assert "samples are packed once" in capsys.readouterr().err
    write("osprey_conversation", tmp_path)
    (tmp_path / "osprey/Osprey-724K/osprey_conversation.json").write_text('[{"id": 1}]')
    assert main(["data", "check", "osprey_conversation", "--root", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: osprey_conversation (train): 'conversations' is missing in ") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "missing", "loaded"), [("check", "grain", ("pipeline", "loader")), ("pack --out shards", "tensorflow_datasets", ("tfds.builder",))]
)
def test_data_commands_without_the_extra(root, tmp_path, capsys, monkeypatch, command, missing, loaded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in loaded:
        monkeypatch.delitem(sys.modules, f"unipixel_jax.data.{name}", raising=False)
    assert main(["data", *command.split(), "osprey_conversation", "--root", str(root)]) == 1
    assert capsys.readouterr().err == f"error: looking at training data needs {missing}: run pip install 'unipixel-jax[train]'\n"
    assert not (tmp_path / "shards").exists()


def test_pixels_in_bfloat16_are_what_the_model_would_round_them_to(root):
    """Only images are rounded, as JAX rounds. They come from a worker, since bfloat16 arrays need a pickler of their own on the way."""
    names, half = "videorefer_qa_mem:4", dataclasses.replace(DRAW, pixel_dtype="bfloat16")
    whole = take(open_loader(open_mixture(names, root, 2), DRAW, LoaderOptions()), 2)
    rounded = take(open_loader(open_mixture(names, root, 2), half, LoaderOptions(workers=1)), 2)
    for one, other in zip(whole, rounded, strict=True):
        ours, theirs = flat(one.arrays), flat(other.arrays)
        for name in (".inputs.patches", ".clips.frames"):
            assert theirs[name].dtype == jnp.bfloat16
            np.testing.assert_array_equal(np.asarray(jnp.asarray(ours.pop(name)).astype(jnp.bfloat16)), theirs.pop(name))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
