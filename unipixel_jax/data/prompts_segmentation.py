"""Sentences that ask for a segmentation and that answer. ``{}`` stands for the words of the turn; a draw picks one sentence of a list.

The first question of each list is the one with which the reference's benchmarks ask (``unipixel/eval/infer_seg.py``), which is a protocol: a score with other
words is another score. The others were written for this project.
"""

from __future__ import annotations

from unipixel_jax.processing.tokenizer import SEG_TOKEN

IMAGE_QUERIES = (
    "Please segment the {} in this image.",
    "Segment the {} in this picture.",
    "Could you outline the {} in this image?",
    "Mark every pixel of the {} in the photo.",
    "I would like a mask of the {} in this image.",
    "Which part of the image shows the {}? Answer with its mask.",
    "Locate the {} in this picture and give its mask.",
    "Where can I see the {} in the image? Mark it for me.",
    "Show me the {}. A segmentation mask is enough.",
)
"""Ask for something named in a photo."""

VIDEO_QUERIES = (
    "Please segment the {} in this video.",
    "Segment the {} in this clip.",
    "Could you outline the {} throughout the video?",
    "Mark every pixel of the {} in each frame of the video.",
    "I would like masks of the {} in this video.",
    "Which part of the video shows the {}? Answer with its mask.",
    "Follow the {} through this clip and give its mask.",
    "Where can I see the {} in the video? Mark it for me.",
    "Show me the {}. A segmentation mask is enough.",
)
"""Ask for something named in a clip."""

SENTENCES = (
    "{} Please provide the segmentation mask.",
    "{} Answer with a mask.",
    "{} Mark what is meant.",
    "{} Please outline it with a segmentation mask.",
    "{} I only need the mask.",
    "{} Show it by segmenting it.",
    "{} Return the segmentation of what this is about.",
)
"""Add the wish for a mask to a whole sentence or question."""

QUESTIONS = (
    "{} Please answer the question and provide the segmentation mask.",
    "{} Answer briefly and mark what you speak of.",
    "{} Please reply, and add the mask of the object in your answer.",
    "{} Tell me, and outline it.",
    "{} Give an answer that is backed by a segmentation mask.",
    "{} Reply in a few words and segment the object.",
    "{} What is the answer, and where is it? Include a mask.",
)
"""Ask for a short answer and the mask of what it names."""

EXPLANATIONS = (
    "{} Please provide the segmentation mask and explain why.",
    "{} Segment it, then explain your choice.",
    "{} Give the mask and say why it is this one.",
    "{} Mark what is meant and tell me the reason.",
    "{} Please outline it and add an explanation.",
    "{} I need the segmentation mask, followed by your reasoning.",
    "{} Show it with a mask and answer in full sentences.",
)
"""Ask for a mask first and the reason for it after."""

DESCRIPTIONS = (
    "Please segment the object according to the description: {}",
    "Find what is described here and segment it: {}",
    "Somebody described an object like this: {} Mark it in the video.",
    "Read this description and outline the object that fits it: {}",
    "Which object is meant here? {} Answer with its mask.",
    "Give the mask of the object with this description: {}",
    "Description: {} Track the object that it speaks of.",
)
"""Ask for something that is described at length."""

ANSWERS = (
    f"{SEG_TOKEN}.",
    f"Here it is: {SEG_TOKEN}.",
    f"It is marked as {SEG_TOKEN}.",
    f"Of course, the mask is {SEG_TOKEN}.",
    f"This is what you asked for: {SEG_TOKEN}.",
    f"I found it at {SEG_TOKEN}.",
)
"""Give the mask and say nothing else."""


def bare_name(name: str) -> str:
    """A name, which is not empty, without a capital at its start and without its article, as the sentences take it."""
    name = name[0].lower() + name[1:]
    for article in ("the ", "an ", "a "):
        name = name.removeprefix(article)
    return name
