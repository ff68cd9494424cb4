"""Chat templates, rendered in bounded time and memory.

A chat template is a program in Jinja that a checkpoint brings along. Jinja's sandbox keeps it from files and from Python itself, but not from a loop without
end or from a string of gigabytes. Those of UniPixel's checkpoints only walk over the turns and their parts, compare and print. Such plain templates are
recognised by their syntax tree: their work is bounded by the conversation, and they are rendered at once. Any other template is rendered by a child process
with limits on its time and memory, which takes a second longer.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes

from unipixel_jax.errors import UserError
from unipixel_jax.processing.hugging_face import template_environment

MAX_SOURCE = 1 << 18
"""Longest template in characters; the longest of any published model has a tenth of that."""

MAX_TEXT = 1 << 24
"""Longest rendered conversation in characters."""

SECONDS = 5
"""Processor time of the child process after its imports; a conversation takes a millisecond."""

MEMORY = 1 << 30
"""Address space of the child process in bytes; it begins with a tenth of that."""

_PLAIN = frozenset((
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.NSRef, nodes.If, nodes.CondExpr, nodes.And, nodes.Or, nodes.Not,
    nodes.Compare, nodes.Operand, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.For, nodes.Break, nodes.Continue, nodes.Assign,
))  # fmt: skip
"""The nodes of a plain template's syntax tree. Assignments may also add a number and make namespaces."""

_LOOPS = 2
"""How deeply loops of a plain template may be nested: turns, and parts of a turn."""


class ChatTemplate:
    """A chat template, ready to render.

    Args:
        source: the template's source in Jinja.

    Raises:
        UserError: it is no template, or too long.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise UserError(f"the chat template has {len(source):,} characters, expected at most {MAX_SOURCE:,}: copy chat_template.jinja again")
        self._source = source
        try:
            environment = template_environment()
            self._plain = environment.from_string(source) if _is_plain(environment.parse(source)) else None
        except Exception as error:  # besides Jinja's own errors those of Python's compiler, for example for too deep nesting
            raise UserError(f"the chat template cannot be read ({_named(error)}): copy chat_template.jinja again from the checkpoint") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Args:
            messages: the turns in order.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            UserError: the template fails, takes too long or too much memory, or refuses the conversation.
        """
        if self._plain is None:
            return _in_child(self._source, messages, add_generation_prompt)
        try:
            return _rendered(self._plain, messages, add_generation_prompt)
        except Exception as error:  # a template can raise nearly anything
            raise _failed(_named(error)) from None


def _is_plain(node: nodes.Node, loops: int = 0) -> bool:
    """Whether a part of a template does no more than walk over what it is given, compare, count and print."""
    if isinstance(node, nodes.Assign):
        return _assigns_little(node) or (isinstance(node.target, nodes.Name) and _is_plain(node.node, loops))
    if type(node) not in _PLAIN:
        return False
    if isinstance(node, nodes.For):
        loops += 1
        if node.recursive or loops > _LOOPS:
            return False
    return all(_is_plain(child, loops) for child in node.iter_child_nodes())


def _assigns_little(node: nodes.Assign) -> bool:
    """Whether it assigns a constant, a namespace of constants, or something plain to which a whole number is added: what a template counts with."""
    value = node.node
    if isinstance(value, nodes.Call):
        made = isinstance(value.node, nodes.Name) and value.node.name == "namespace" and not (value.args or value.dyn_args or value.dyn_kwargs)
        return made and all(isinstance(given.value, nodes.Const) for given in value.kwargs)
    if isinstance(value, nodes.Add | nodes.Sub):
        return isinstance(value.right, nodes.Const) and type(value.right.value) is int and _is_plain(value.left, _LOOPS)
    return isinstance(value, nodes.Const)


def _rendered(template: jinja2.Template, messages: Any, add_generation_prompt: bool) -> str:
    pieces, room = [], MAX_TEXT
    for piece in template.generate(messages=messages, add_generation_prompt=add_generation_prompt):
        room -= len(piece)
        if room < 0:
            raise UserError(f"it makes more than {MAX_TEXT:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _in_child(source: str, messages: Any, add_generation_prompt: bool) -> str:
    request = json.dumps({"source": source, "messages": messages, "add_generation_prompt": add_generation_prompt})
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", __name__], input=request, capture_output=True, encoding="utf-8", timeout=3 * SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        )  # fmt: skip
        answer = json.loads(ended.stdout) if ended.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        answer = {}
    if "text" not in answer:
        raise _failed(answer.get("error") or f"it takes more than {SECONDS} seconds or {MEMORY >> 30} GB of memory")
    return answer["text"]


def _failed(why: str) -> UserError:
    return UserError(f"the chat template fails ({why}): copy chat_template.jinja again from the checkpoint")


def _named(error: Exception) -> str:
    """Why a template failed, in one line of bounded length."""
    text = " ".join(str(error)[:200].split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _child() -> None:
    """Run the child process: read the request from its stdin and write the answer to its stdout."""
    environment = template_environment()
    seconds = int(time.process_time()) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    request = json.load(sys.stdin)
    try:
        template = environment.from_string(request["source"])
        answer = {"text": _rendered(template, request["messages"], request["add_generation_prompt"])}
    except Exception as error:
        answer = {"error": _named(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _child()
