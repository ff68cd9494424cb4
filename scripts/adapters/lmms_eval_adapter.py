"""UniPixel as a model of lmms-eval (EvolvingLMMs-Lab/lmms-eval), whose own command it starts with the model registered.

    python scripts/adapters/lmms_eval_adapter.py --model unipixel_jax --model_args pretrained=PolyU-ChenLab/UniPixel-3B --tasks mme --batch_size 16

See docs/harnesses.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from answering import Answerer, Part, Request
from lmms_eval.api.model import lmms

from unipixel_jax.errors import UserError
from unipixel_jax.infer.loading import EMBEDDED


class UniPixelJax(lmms):
    """A model that takes lmms-eval's chat messages (lmms_eval/protocol.py:ChatMessages).

    Args:
        pretrained: any name that ``UniPixel.from_pretrained`` takes.
        batch_size: answers that are generated together on a device; the harness's ``--batch_size``.
        device: the harness's ``--device``, which is refused.
        options: the others of ``Answerer``.

    Raises:
        UserError: a batch size that is no number, a device, or the reasons of ``Answerer``.
    """

    is_simple = False

    def __init__(self, pretrained: str = str(EMBEDDED), batch_size: int | str = 1, device: str | None = None, **options: Any) -> None:
        super().__init__()
        if device is not None:
            raise UserError(f"device is {device}: leave --device out, JAX takes the devices that JAX_PLATFORMS and CUDA_VISIBLE_DEVICES leave it")
        if not str(batch_size).isdecimal():
            raise UserError(f"batch_size is {batch_size}, expected a number of answers that are generated together, such as 16")
        self._answerer = Answerer(pretrained, rows=int(batch_size), **options)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, whose arguments are (context, doc_to_messages, generation settings, document's number, task, split).

        Raises:
            UserError: the reasons of ``Answerer.answer``, or settings that ask for drawn answers or several beams.
        """
        return self._answerer.answer(_request(self._messages(request), request.args[2]) for request in requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer each request's rounds. The task makes the message of a round from the answers before it, and says when it was the last.

        Returns:
            Of each request, the answers of its rounds, as the task gave them back.

        Raises:
            UserError: the reasons of ``generate_until``.
        """
        said: list[list[str]] = [[] for _ in requests]
        waiting = {number: self._messages(request) for number, request in enumerate(requests)}
        known: dict[int, Any] = {}
        while waiting:
            answers = self._answerer.answer(_request(messages, requests[number].args[2]) for number, messages in waiting.items())
            following = {}
            for number, answer in zip(waiting, answers, strict=True):
                said[number].append(answer)
                turn = self._messages(
                    requests[number], round_idx=len(said[number]), previous_output=list(said[number]), previous_round_info=known.get(number)
                )
                messages, ended, said[number], known[number] = turn
                said[number] = list(said[number])
                if not ended:
                    following[number] = messages
            waiting = following
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse tasks that compare likelihoods.

        Raises:
            UserError: always.
        """
        raise UserError("UniPixel's adapter generates answers and computes no likelihoods: choose tasks with output_type generate_until")

    def _messages(self, request: Any, **of_round: Any) -> Any:
        _, doc_to_messages, _, number, task, split = request.args
        return doc_to_messages(self.task_dict[task][split][number], **of_round)


def _request(messages: Iterable[dict[str, Any]], settings: dict[str, Any]) -> Request:
    temperature = settings.get("temperature") or 0
    if settings.get("do_sample", temperature > 0) and temperature > 0:
        raise UserError(f"temperature is {temperature}, but the adapter takes the likeliest words: give --gen_kwargs temperature=0")
    if (settings.get("num_beams") or 1) > 1:
        raise UserError(f"num_beams is {settings['num_beams']}, but the adapter follows one answer: give --gen_kwargs num_beams=1")
    until = settings.get("until") or ()
    parts = [_part(content, message["role"]) for message in messages for content in message["content"]]
    return Request(parts, (until,) if isinstance(until, str) else until, settings.get("max_new_tokens"))


def _part(content: dict[str, Any], role: Any) -> Part:
    if content["type"] == "text":
        return Part("text", content["text"], role)
    url, start, end = content["url"], content.get("start_time"), content.get("end_time")
    if isinstance(url, dict):  # tasks without messages of their own give a part of a video so (lmms_eval/api/task.py:_visual_to_content)
        url, start, end = url.get("url") or url.get("path"), url.get("video_start"), url.get("video_end")
    return Part(content["type"], url, role, start, end)


def main() -> None:
    """Register the model, and run lmms-eval's command on the arguments."""
    from lmms_eval.__main__ import cli_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    MODEL_REGISTRY_V2.register_manifest(ModelManifest("unipixel_jax", chat_class_path=f"{__name__}.{UniPixelJax.__name__}"))
    cli_evaluate()


if __name__ == "__main__":
    main()
