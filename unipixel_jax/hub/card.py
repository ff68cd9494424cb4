"""The model card of a converted directory: the README.md that the Hub shows, with the front matter that it searches."""

from __future__ import annotations

import re

from unipixel_jax.convert.sources import Source

CARD = "README.md"
ORIGIN = ("hub", "revision", "license")
"""What a manifest says of a model that was downloaded: its Hub id, the commit, and the license that its card names."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
"""Texts that stand in YAML as they are."""


def model_card(source: Source, name: str) -> str:
    """Return the text of a model card.

    Args:
        source: the model, described by what it was converted from.
        name: the name of its directory, for the title.
    """
    base, commit, license = (_plain(source.description.get(key)) for key in ORIGIN)
    front = ["library_name: unipixel_jax", "pipeline_tag: image-segmentation"]
    front += [f"base_model: {base}"] if base else []
    front += [f"license: {license}"] if license else ["license: other", "license_name: unknown"]
    front += ["tags:", *(f"- {tag}" for tag in ("unipixel", "jax", "video-segmentation", "referring-segmentation", "visual-question-answering"))]
    origin = f"It was converted from [{base}](https://huggingface.co/{base}), commit `{commit}`." if base else ""
    terms = "" if license else "The license of the weights is not known here: name it above before you publish them."
    count = sum(tensor.count for tensor in source.tensors.values())
    dtypes = ", ".join(sorted({tensor.dtype for tensor in source.tensors.values()}))
    paragraphs = [
        "\n".join(["---", *front, "---"]),
        f"# {name}",
        f"[UniPixel](https://arxiv.org/abs/2509.18094), a model that segments, tracks and discusses objects named in words, in the format of unipixel_jax: "
        f"{count:,} parameters ({dtypes}). {origin}".strip(),
        '```python\nfrom unipixel_jax import UniPixel\n\nmodel = UniPixel.from_pretrained("OWNER/NAME")  # this repository, or a directory with its files\n'
        'prediction = model.segment("photo.jpg", "Please segment the dog.")\nprediction.objects[0].masks  # bool [frames, height, width]\n```',
        terms,
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _plain(value: object) -> str | None:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else None
