"""Many jobs at once give what each gives alone, whatever the others do, and files of results survive a kill at any moment."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from unipixel_jax import Point, UniPixel
from unipixel_jax.cli import main
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.infer import engine, many
from unipixel_jax.infer.many import Job, Outcome

NEW = 24


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def jobs():
    """Photos of two sizes, questions with answers of different lengths, a point, an object of the prompt, clips, and two jobs that fail."""
    made = []
    for seed in range(6):
        scene = draw_scene(np.random.default_rng(seed))
        frame = scene.frames[0]
        photo = np.ascontiguousarray(frame[:96]) if seed % 3 == 2 else frame
        made.append(Job(photo, f"Segment the {full_name(scene, 0)}.", id=f"segment {seed}"))
        if seed % 2:
            made.append(Job(photo, "What is <region>?", [Point(40, 50)], id=f"point {seed}"))
    clip = draw_scene(np.random.default_rng(9), 2)
    made.append(Job("no/such/photo.png", "Segment the circle.", id="missing"))
    made.append(Job(clip.frames, f"Segment the {full_name(clip, 1)}.", id="clip"))
    long = draw_scene(np.random.default_rng(5), 20)
    made.append(Job(long.frames, f"Segment the {full_name(long, 0)}.", id="long clip", sample_frames=4))
    made.append(Job(long.frames, "What is <region>?", [Point(40, 50)], id="words about a clip", sample_frames=4))
    made.append(Job(clip.frames[0], "Is this <|seg|> a circle? Segment the circle.", id="of the prompt"))
    made.append(Job(clip.frames[0], "What is <region>?", [Point(999, 5)], id="outside"))
    return made


@pytest.fixture(scope="module")
def alone(model, jobs):
    sound = [job for job in jobs if job.id not in ("missing", "outside")]
    return {job.id: model.segment(job.media, job.prompt, job.references, sample_frames=job.sample_frames, max_new_tokens=NEW) for job in sound}


def compare(outcomes, jobs, alone):
    found = {outcome.job.id: outcome for outcome in outcomes}
    assert found.keys() == {job.id for job in jobs} and len(outcomes) == len(jobs)
    assert "no/such/photo.png does not exist" in found["missing"].reason
    assert "outside the image" in found["outside"].reason
    for name, wanted in alone.items():
        prediction = found[name].prediction
        assert prediction is not None, found[name].reason
        assert list(prediction.tokens) == list(wanted.tokens) and prediction.text == wanted.text
        assert prediction.frames == wanted.frames and prediction.size == wanted.size
        for ours, theirs in zip(prediction.objects, wanted.objects, strict=True):
            assert ours.span == theirs.span and np.mean(ours.masks != theirs.masks) < 1e-3
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_many_answers_and_masks_are_those_of_each_alone(model, jobs, alone):
    """Four rows for all jobs: rows are refilled, and the cache grows for the clips. A clip has masks on frames that the language model does not see."""
    assert len({len(item.tokens) for item in alone.values()}) > 1 and len(alone["of the prompt"].objects) > 1
    (found,) = alone["long clip"].objects
    assert found.masks.shape == (20, 128, 128) and all(found.areas) and not alone["words about a clip"].objects
    compare(list(model.segment_many(jobs, rows=4, max_new_tokens=NEW, devices=jax.devices()[:1])), jobs, alone)


def test_after_groups_of_every_size_nothing_is_compiled(model, jobs, compiled):
    photos = [job for job in jobs if job.id.startswith("segment")]
    turned = [Job(np.ascontiguousarray(job.media[:, ::-1]), job.prompt, id=job.id) for job in [*photos, *photos]]
    for some in (jobs, [*photos, *photos], photos[:4], photos[:2], photos[:1]):
        list(model.segment_many(some, rows=4, max_new_tokens=NEW, devices=jax.devices()[:1]))
    assert compiled, "the listener hears nothing"
    compiled.clear()
    assert len(list(model.segment_many(turned, rows=4, max_new_tokens=NEW, devices=jax.devices()[:1]))) == 12
    assert compiled == []


@pytest.mark.slow
def test_devices_share_the_jobs(model, jobs, alone):
    compare(list(model.segment_many(jobs, rows=2, max_new_tokens=NEW, devices=jax.devices()[:2])), jobs, alone)


@pytest.mark.parametrize("where", ["read_prompts", "decode_rows", "photo_masks"])
def test_an_error_in_a_program_fails_those_jobs_alone(model, jobs, monkeypatch, where):
    module = many if where == "photo_masks" else engine
    real, calls = getattr(module, where), []

    def failing(*args, **static):
        calls.append(where)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(*args, **static)

    photos = [job for job in jobs if job.id.startswith("segment")]
    with monkeypatch.context() as patch:
        patch.setattr(module, where, failing)
        outcomes = list(model.segment_many([*photos, *photos], rows=4, max_new_tokens=NEW, devices=jax.devices()[:1]))
    failed = [outcome.reason for outcome in outcomes if outcome.prediction is None]
    assert len(outcomes) == 12 and len(failed) < 6 and set(failed) <= {"RuntimeError: out of memory"}
    assert failed or where == "read_prompts"  # its prompts are read again one by one


def test_jobs_that_are_not_wanted_any_more_end(model, jobs):
    endless = (Job(jobs[0].media, jobs[0].prompt, id=str(number)) for number in iter(int, 1))
    outcomes = model.segment_many(endless, rows=4, max_new_tokens=NEW, devices=jax.devices()[:1])
    assert next(outcomes).prediction is not None
    outcomes.close()
    with pytest.raises(UserError, match="rows is 0"):
        model.segment_many([], rows=0)


def command(*argv):
    """Run `segment` on many jobs."""
    options = {"dtype": "float32", "tensor": 1, "max-new-tokens": NEW, "devices": 1, "rows": 4}
    return main(["segment", *map(str, argv), *(f"--{name}={value}" for name, value in options.items())])


@pytest.fixture
def folder(tmp_path):
    """Two photos and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, seed in enumerate((1, 2)):
        Image.fromarray(draw_scene(np.random.default_rng(seed)).frames[0]).save(folder / f"{number}.png")
    (folder / "10.txt").write_text("no photo")
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_folder_and_prompts_make_results_that_are_resumed(folder, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("Segment the circle.\n\nWhat is at the left?\n")
    assert command(folder, "--prompts", prompts, "--out", out) == 1
    assert "2 of 6 jobs failed" in capsys.readouterr().err
    results = read_lines(out / "results.jsonl")
    assert sorted(entry["id"] for entry in results) == ["0.png#1", "0.png#3", "1.png#1", "1.png#3"]
    assert {entry["id"]: entry["reason"] for entry in read_lines(out / "failures.jsonl")}.keys() == {"10.txt#1", "10.txt#3"}
    assert all(entry["prompt"] and entry["media"].endswith(".png") and entry["size"] == [128, 128] for entry in results)

    assert command(folder, "--prompts", prompts, "--out", out) == 1
    assert "results.jsonl exists: give --resume" in capsys.readouterr().err
    (folder / "10.txt").unlink()
    whole = (out / "results.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (b"".join(lines[:2]) + lines[2][:50], b"", lines[0][:-1]):  # as processes leave them that are killed
        (out / "results.jsonl").write_bytes(kept)
        assert command(folder, "--prompts", prompts, "--out", out, "--resume") == 0
        assert sorted(read_lines(out / "results.jsonl"), key=str) == sorted(results, key=str)
        assert read_lines(out / "failures.jsonl") == []
    assert command(folder, "--prompts", prompts, "--out", out, "--resume") == 0
    assert "0 answered, 4 were there" in capsys.readouterr().out
    assert command(folder, "--prompts", prompts, "--out", out, "--resume", "--format", "coco") == 0
    assert f"2 pictures: {out / 'coco'}" in capsys.readouterr().out
    exported = json.loads((out / "coco" / "annotations.json").read_text())
    assert [image["file_name"] for image in exported["images"]] == ["0.jpg", "1.jpg"]
    assert [category["name"] for category in exported["categories"]] == ["circle", "What is at the left?"]
    found = {entry["media"][-5]: entry["objects"] for entry in results if entry["prompt"] == "Segment the circle."}
    wanted = [item["masks"][0]["counts"] for number in "01" for item in found[number] if item["found"]]
    assert wanted and [item["segmentation"]["counts"] for item in exported["annotations"] if item["category_id"] == 1] == wanted
    for options, words in ((["--format", "gif"], "--format gif is of one clip's overlay"), (["--format", "coco", "--host", "0/2"], "2 hosts share the jobs")):
        assert command(folder, "--prompts", prompts, "--out", out, "--resume", *options) == 1
        assert words in capsys.readouterr().err
    prompts.write_text("Segment the square.\n")
    assert command(folder, "--prompts", prompts, "--out", out, "--resume") == 1
    assert "result of another job with the id '0.png#1'" in capsys.readouterr().err


def test_hosts_share_a_list(folder, tmp_path, monkeypatch):
    """Each host has files of its own, and one that resumes knows those of all."""

    def answer(loaded, sampling, seed, jobs, options, devices):
        yield from (Outcome(job, reason=f"{job.media.name} {job.sample_frames} {job.references}") for job in jobs)

    monkeypatch.setattr(many, "run_jobs", answer)
    path, out = tmp_path / "list.jsonl", tmp_path / "out"
    entries = [{"media": "photos/0.png", "prompt": f"Prompt {n}", "id": f"job {n}"} for n in range(5)]
    entries[4] |= {"sample_frames": 3, "references": [[1, 2], [1, 2, 30, 40, 1]]}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out.mkdir()
    (out / "results-7.jsonl").write_text(json.dumps({"id": "job 2", "media": str(folder / "0.png"), "prompt": "Prompt 2"}) + '\n{"id": "jo')
    found = []
    for host in range(2):
        assert command(path, "--out", out, "--host", f"{host}/2", "--resume") == 1
        assert (out / f"results-{host}.jsonl").read_bytes() == b""
        found.append({entry["id"]: entry["reason"] for entry in read_lines(out / f"failures-{host}.jsonl")})
    assert [sorted(own) for own in found] == [["job 0", "job 4"], ["job 1", "job 3"]]
    assert found[0]["job 4"] == "0.png 3 (Point(x=1, y=2, frame=0), Box(x0=1, y0=2, x1=30, y1=40, frame=1))"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: it is not JSON"),
        ("[1]", "line 2: it holds a list"),
        ('{"media": "a.png"}', "line 2: 'prompt' is missing"),
        ('{"media": 3, "prompt": "x"}', "line 2: 'media' is 3"),
        ('{"media": "a.png", "prompt": " "}', "line 2: the prompt is empty"),
        ('{"media": "a.png", "prompt": "x", "promt": "y"}', "line 2: the key 'promt' is unknown"),
        ('{"media": "a.png", "prompt": "x", "id": true}', "line 2: 'id' is true"),
        ('{"media": "a.png", "prompt": "x", "id": "1"}', "line 2: the id '1' is that of line 1 too"),
        ('{"media": "a.png", "prompt": "x", "sample_frames": 0}', "line 2: 'sample_frames' is 0"),
        ('{"media": "a.png", "prompt": "x", "references": [[1, 2, 0.5]]}', "line 2: the reference .* is none"),
        ('{"media": "a.png", "prompt": "x", "references": [[1, 1e999]]}', "line 2: the reference .* is none"),
        ("[" * 100_000, "line 2: it is nested too deeply"),
        (b"\xff", "line 2: it is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_before_a_model_is_loaded(line, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(UniPixel, "from_pretrained", None)
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'{"media": "a.png", "prompt": "x"}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    assert command(path, "--out", tmp_path / "out") == 1
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(f"error: {path}, ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(shown)
    assert not (tmp_path / "out").exists()
