"""UniPixel as a model of VLMEvalKit (open-compass/VLMEvalKit), whose run.py it starts with the model registered.

    python scripts/adapters/vlmevalkit_adapter.py VLMEvalKit/run.py --pretrained PolyU-ChenLab/UniPixel-3B --data MMBench_DEV_EN_V11

See docs/harnesses.md.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

from answering import Answerer, Part, Request
from vlmeval.vlm.base import BaseModel

from unipixel_jax.infer.loading import EMBEDDED
from unipixel_jax.infer.predictor import SAMPLE_FRAMES


class UniPixelJax(BaseModel):
    """A model that takes VLMEvalKit's messages. The harness asks one question after the other, so answers are generated one at a time.

    Args:
        pretrained: any name that ``UniPixel.from_pretrained`` takes.
        sample_frames: how many frames of a video the language model looks at, until a benchmark of videos says another number.
        options: the others of ``Answerer``.

    Raises:
        UserError: the reasons of ``Answerer``.
    """

    INTERLEAVE = False
    VIDEO_LLM = True

    def __init__(self, pretrained: str = str(EMBEDDED), sample_frames: int = SAMPLE_FRAMES, **options: Any) -> None:
        super().__init__()
        self.nframe = sample_frames  # vlmeval/inference_video.py writes the benchmark's number here
        self._answerer = Answerer(pretrained, rows=1, devices=1, **options)

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Answer one message, a list of pieces with a ``type``, a ``value`` and maybe a ``role``.

        Raises:
            UserError: the reasons of ``Answerer.answer``.
        """
        parts = [Part(piece["type"], piece["value"], piece.get("role", "user")) for piece in message]
        (answer,) = self._answerer.answer([Request(parts, sample_frames=self.nframe)])
        return answer


def main() -> None:
    """Register the model under the last part of its name, and run VLMEvalKit's run.py on the other arguments."""
    from vlmeval.config import supported_VLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run.py of a checkout of VLMEvalKit")
    parser.add_argument("--pretrained", default=str(EMBEDDED), help="any name that UniPixel.from_pretrained takes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    for name in ("sample-frames", "max-new-tokens", "min-pixels", "max-pixels"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help="see answering.py:Answerer")
    args, others = parser.parse_known_args()
    options = vars(args)
    run, name = options.pop("run"), Path(args.pretrained).resolve().name
    if not run.is_file():
        parser.error(f"{run} is no file, expected run.py of a checkout of VLMEvalKit")
    supported_VLM[name] = partial(UniPixelJax, **options)
    sys.argv = [str(run), "--model", name, *others]
    sys.path[0] = str(run.parent)
    runpy.run_path(str(run), run_name="__main__")


if __name__ == "__main__":
    main()
