"""A small Inst-IT: photos with captions of their objects, and clips with questions, some with the mistakes that the source repairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .discs import COLOURS, draw_discs, run_length, write_folder, write_json, write_photo

FOLDER = "inst_it/Inst-IT-Dataset"


def write_photos(root: Path) -> None:
    """Write photos of two objects, each with a caption."""
    records = []
    for number in range(3):
        frames, masks = draw_discs(1, 2, start=number)
        write_photo(root / FOLDER / f"images_raw/sub/photo_{number}.jpg", frames[0])
        captions = {str(o + 1): {"short": f"a {COLOURS[o]} disc", "long": f"A {COLOURS[o]} disc on gray ground."} for o in range(2)}
        segmentations = {str(o + 1): {"mask": run_length(masks[o, 0])} for o in range(2)}
        path = f"images/sub/photo_{number}.jpg"
        records.append({"image_id": f"photo_{number}", "image_path": path, "instance_level_caption": captions, "segmentations": segmentations})
    write_json(root / FOLDER / "inst_it_dataset_image_51k_w_mask.json", records)


def write_clips(root: Path) -> None:
    """Write clips of 7, 9, 12 and 1 frames. The third is too long for both sources, the second for one. In the longer three, object 3 comes in on frame 2."""
    records = []
    questions = [
        ("What is [01] doing at <0>?", "[1] moves to the right of [2]."),
        ("Is [2] above [3]?", "Yes, from <3> to <5>."),
        ("How many discs are there?", "Three."),
        ("Which disc is red?", "[1] is red."),
    ]
    for number, length in enumerate((7, 9, 12, 1)):
        frames, masks = draw_discs(length, 3, start=number)
        write_folder(root / FOLDER / f"videos_raw/sub/clip_{number}", frames, "frame_{}.jpg")
        segmentations = {
            f"frame_{f}.jpg": {str(o + 1): {"mask": run_length(masks[o, f])} for o in range(3) if o < 2 or f > 1 or length == 1} for f in range(length)
        }
        pairs = [{"question": question, "answer": answer} for question, answer in questions]
        path = f"videos/sub/clip_{number}"
        records.append({"video_id": f"clip_{number}", "video_path": path, "question_answer_pairs": pairs, "segmentations": segmentations})
    write_json(root / FOLDER / "inst_it_dataset_video_21k_w_mask.json", records)


WRITERS: dict[str, Callable[[Path], None]] = {
    "inst_it_image_short_caption_raw_ref": write_photos,
    "inst_it_video_qa_raw": write_clips,
    "inst_it_video_qa_raw_mem": write_clips,
}
