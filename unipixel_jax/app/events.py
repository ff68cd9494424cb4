"""How the page's buttons call functions: errors in a visitor's words, a queue with an end, and no programming interface beside the page."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from unipixel_jax.errors import UserError, one_line

log = logging.getLogger(__name__)

MODEL, LIVE = "model", "live"
"""The queues: one answer at a time, and a few clips and cameras that are followed frame by frame."""
AT_ONCE = {MODEL: 1, LIVE: 2}
"""How many visitors of a queue are served at the same time; the model itself is had by one of them at a time."""
_SHOWN_SECONDS = 12


@contextmanager
def told() -> Iterator[None]:
    """Tell a visitor in one line what went wrong. What a visitor cannot put right goes to the server's log.

    Raises:
        gr.Error: in place of any other error.
    """
    try:
        yield
    except UserError as error:
        raise gr.Error(one_line(str(error)), duration=_SHOWN_SECONDS, print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("an event of the page failed")
        words = f"something went wrong on the server ({type(error).__name__}), which is not your fault: try again, or with another picture"
        raise gr.Error(words, duration=_SHOWN_SECONDS, print_exception=False) from error


def telling(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler, or a generator that yields as it goes on, whose errors are told."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with told():
                yield from handler(*args, **kwargs)

        return generate

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        with told():
            return handler(*args, **kwargs)

    return call


def on(
    triggers: Sequence[Callable[..., Any]], handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], queue: str | None = None, **more: Any
) -> Any:
    """Call a handler at events.

    Args:
        triggers: such as ``button.click``.
        handler: takes the inputs' values and returns those of the outputs.
        inputs, outputs: components.
        queue: ``MODEL`` or ``LIVE`` for what needs the model; None for what takes milliseconds.
        more: further options of ``gr.on``.
    """
    limits: dict[str, Any] = {"concurrency_id": queue, "concurrency_limit": AT_ONCE[queue]} if queue else {"concurrency_limit": 8}
    options = {"show_progress": "minimal" if queue else "hidden", "api_visibility": "private", **limits, **more}
    return gr.on(list(triggers), telling(handler), list(inputs), list(outputs), **options)
