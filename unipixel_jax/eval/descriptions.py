"""Scores of VideoRefer-Bench-D: a judge's marks of the descriptions in a folder of predictions."""

from __future__ import annotations

from pathlib import Path

from unipixel_jax.eval.judge import INSTRUCTION, ChatJudge, read_instruction, score_descriptions
from unipixel_jax.eval.records import read_records
from unipixel_jax.eval.replies import KeptReplies
from unipixel_jax.eval.scores import Scores

REPLIES = "judge.jsonl"
"""The file, in the folder of results, in which the judge's replies are kept."""

AT_ONCE = 4
"""Descriptions that are judged at a time."""


def score_marks(split: str, predictions: Path, notes: Path, url: str, model: str, prompt: Path | None) -> Scores:
    """Have the descriptions judged. Those that failed have none, and are left out as in the reference.

    Args:
        split: the split's name.
        predictions: the folder of predictions.
        notes: the folder in which replies are kept.
        url: the judge's address, with OpenAI's interface.
        model: the judge's model.
        prompt: a file with the judge's instruction; None for our own words.

    Raises:
        UserError: the predictions are of another benchmark, or the judge cannot be asked.
    """
    records = read_records(predictions, ("caption",), "videorefer_d")
    said = [record for record in records if isinstance(record.get("pred"), str)]
    notes.mkdir(parents=True, exist_ok=True)
    with KeptReplies(notes / REPLIES) as replies:
        judge = ChatJudge(url, model, INSTRUCTION if prompt is None else read_instruction(prompt), replies)
        found = score_descriptions(judge, [(str(record["caption"]), record["pred"]) for record in said], AT_ONCE)
    failures = [{"sample": str(record.get("vid", "")), "reason": "there is no description"} for record in records if "pred" not in record]
    failures += [{"sample": str(said[number].get("vid", number)), "reason": reason} for number, reason in found.failures.items()]
    samples = [
        {"vid": record.get("vid"), "caption": record["caption"], "pred": record["pred"], **({} if marks is None else marks.marks)}
        for record, marks in zip(said, found.marks, strict=True)
    ]
    return Scores("videorefer_d", split, found.to_json(), samples, failures=failures)
