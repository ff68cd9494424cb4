"""Runs a model on a benchmark: many samples at once, with a journal, so that a run that was killed goes on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.eval import mask_samples, question_samples
from unipixel_jax.eval.benchmarks import Benchmark
from unipixel_jax.eval.journal import Journal, read_journal
from unipixel_jax.eval.samples import Sample, Settings
from unipixel_jax.infer.job_source import Job, Options, reason_of
from unipixel_jax.infer.many import run_jobs
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.infer.predictor import UniPixel

SAMPLES = {**mask_samples.SAMPLES, **question_samples.SAMPLES}

MAX_NEW_TOKENS = 512
TOGETHER = 64
"""Samples with two turns whose first turns are run before their second, so that the masks between them stay few."""


@dataclass(frozen=True)
class Place:
    """Where a run of a benchmark writes.

    Attributes:
        predictions: the folder in the reference's layout, which holds nothing else.
        notes: the folder beside it, with journals and results.
    """

    predictions: Path
    notes: Path

    @classmethod
    def below(cls, out: Path, folder: str) -> Place:
        """The places of a benchmark's folder below the folder of all."""
        return cls(out / folder, out / f"{folder}_results")

    def journal(self, share: tuple[int, int]) -> Path:
        """The journal of one of the processes that share the samples."""
        return self.notes / f"journal-{share[0]}-of-{share[1]}.jsonl"


def list_samples(benchmark: Benchmark, split: str, root: Path, place: Place, settings: Settings, limit: int | None) -> Sequence[Sample]:
    """The samples of a benchmark, all or the first ones.

    Raises:
        UserError: a file of the data set is missing or broken, or there are no samples.
    """
    found = SAMPLES[benchmark.name](benchmark.name, split, root, place.predictions, settings)[:limit]
    if not found:
        raise UserError(f"{benchmark.title}'s split {split} has no samples below {root}, expected at least one")
    return found


def words_of(samples: Sequence[Sample]) -> dict[str, str]:
    """What the model is asked in the first sound sample, as an example of the words: the prompt, and how its answer is begun or given."""
    for sample in samples:
        try:
            job = sample.job()
        except UserError:
            continue
        return {"prompt": job.prompt, "answer_start": job.answer_start, "given_answer": job.given_answer}
    return {}


def run(
    model: UniPixel,
    samples: Sequence[Sample],
    journal: Journal,
    options: Options,
    devices: Sequence[jax.Device],
    progress: Callable[[], None],
) -> None:
    """Run the samples that the journal does not have yet, and note each when it is done.

    Args:
        model: the model.
        samples: the samples of this process.
        journal: an open journal.
        options: how they are run.
        devices: the devices that take samples.
        progress: called after each sample.
    """
    ask = partial(_outcomes, model, options, devices)
    left = [sample for sample in samples if sample.name not in journal.done]
    for sample, prediction, reason in ask((sample, sample.job) for sample in left if sample.then is None):
        _note(sample, prediction, reason, journal)
        progress()
    twice = [sample for sample in left if sample.then is not None]
    for group in (twice[start : start + TOGETHER] for start in range(0, len(twice), TOGETHER)):
        first: list[tuple[Sample, Prediction]] = []
        for sample, prediction, reason in ask((sample, sample.job) for sample in group):
            if prediction is not None:
                first.append((sample, prediction))
            else:
                _note(sample, None, reason, journal)
                progress()
        for sample, prediction, reason in ask((sample, _then(sample, prediction)) for sample, prediction in first):
            _note(sample, prediction, reason, journal)
            progress()


def finish(benchmark: Benchmark, samples: Sequence[Sample], place: Place, share: tuple[int, int]) -> list[dict[str, str]]:
    """Write what the journal holds in the reference's layout: ``output_{i}.json`` of records, and ``failed_{i}.json`` beside masks.

    Returns:
        The failures, with ``sample`` and ``reason``.
    """
    _, done = read_journal(place.journal(share))
    entries = [done[sample.name] for sample in samples]
    failures = [{"sample": entry["sample"], "reason": entry["reason"]} for entry in entries if "reason" in entry]
    place.predictions.mkdir(parents=True, exist_ok=True)
    is_photos = benchmark.name in mask_samples.PHOTOS
    if is_photos or benchmark.name in question_samples.SAMPLES:
        name = "output.json" if share[1] == 1 and not is_photos else f"output_{share[0]}.json"
        _write_json(place.predictions / name, [entry["record"] for entry in entries])
    if failures and benchmark.name in mask_samples.SAMPLES:
        _write_json(place.predictions / f"failed_{share[0]}.json", [{"anno": entry["sample"], "err": entry["reason"]} for entry in failures])
    return failures


def all_done(place: Place, share: tuple[int, int], header: Mapping[str, Any]) -> bool:
    """Whether all processes that share the samples have done theirs."""
    done = 0
    for index in range(share[1]):
        path = place.journal((index, share[1]))
        if path.exists():
            done += len(read_journal(path)[1])
    return done >= header["samples"]


def write_submission(benchmark: Benchmark, place: Place) -> Path:
    """Write the zip file that the benchmark's server takes: for MeViS the videos' folders, for Ref-YouTube-VOS these within a folder "Annotations".

    Returns:
        Its path.
    """
    path = place.notes / "submission.zip"
    inside = Path("Annotations") if benchmark.name == "ref_youtube_vos" else Path()
    # The images are compressed already. Their times are left at the format's first day, so that the same masks make the same file.
    with replacing(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for mask in sorted(place.predictions.rglob("*.png")):
            entry = zipfile.ZipInfo(str(inside / mask.relative_to(place.predictions)))
            archive.writestr(entry, mask.read_bytes())
    return path


def _outcomes(
    model: UniPixel, options: Options, devices: Sequence[jax.Device], pairs: Iterator[tuple[Sample, Callable[[], Job]]]
) -> Iterator[tuple[Sample, Prediction | None, str]]:
    """Run the jobs that belong to samples; yields each sample with its prediction, or with None and the reason why there is none, in any order."""
    running: dict[str, Sample] = {}
    failed: list[tuple[Sample, None, str]] = []

    def jobs() -> Iterator[Job]:
        for sample, make in pairs:
            try:
                job = make()
            except UserError as error:
                failed.append((sample, None, str(error)))
                continue
            running[job.id] = sample
            yield job

    for outcome in run_jobs(model.loaded, model.sampling, model.seed, jobs(), options, devices):
        yield running.pop(outcome.job.id), outcome.prediction, outcome.reason
    yield from failed


def _then(sample: Sample, prediction: Prediction) -> Callable[[], Job]:
    assert sample.then is not None, "the sample has a second turn"
    make = sample.then
    return lambda: make(prediction)


def _note(sample: Sample, prediction: Prediction | None, reason: str, journal: Journal) -> None:
    """Make the record of a sample, and note it. If that fails, whatever the reason, the others go on, and this one's record is that of no prediction."""
    try:
        record = sample.record(prediction)
    except Exception as error:
        reason = reason or reason_of(error)
        try:
            record = sample.record(None)
        except UserError:  # not even the size of the frames can be found
            record = {}
    reason = record.pop("reason", "") or reason
    journal.add(sample.name, record, reason)


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
