"""The ``unipixel-jax`` command: it parses the arguments, sets up what all commands share, and calls the command that was asked for."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from unipixel_jax.arguments import CommandParser
from unipixel_jax.core.cache import prepare_to_compile
from unipixel_jax.errors import UserError, run_command


class Command(NamedTuple):
    """A command of ``unipixel-jax``.

    Attributes:
        configure: ``module:function`` that fills the command's parser, and sets ``run`` to the function that takes the parsed arguments and returns the
            exit status.
        help: what the command does, in a line.
        compiles: whether the command compiles programs, which are then cached on disk.
        spins: whether a spinner on the terminal says what the command does; commands without one draw a progress bar or print lines.
    """

    configure: str
    help: str
    compiles: bool = True
    spins: bool = True


COMMANDS = {
    "segment": Command("unipixel_jax.infer.cli:configure_segment", "segment what a prompt asks for"),
    "track": Command("unipixel_jax.infer.cli:configure_track", "follow what a prompt asks for, frame by frame"),
    "ask": Command("unipixel_jax.infer.cli:configure_ask", "ask about objects that you point at"),
    "describe": Command("unipixel_jax.infer.cli:configure_describe", "describe an object that you point at"),
    "chat": Command("unipixel_jax.infer.chat_cli:configure_chat", "have a conversation about a photo or a clip", spins=False),
    "app": Command("unipixel_jax.app.cli:configure", "open a page in the browser on which everything is tried", spins=False),
    "serve": Command("unipixel_jax.serve.cli:configure", "answer programs over HTTP", spins=False),
    "demo": Command("unipixel_jax.infer.cli:configure_demo", "run on a photo and a clip that ship with the package"),
    "parity": Command("unipixel_jax.parity.cli:configure", "replay a recording of the torch reference and compare"),
    "eval": Command("unipixel_jax.eval.cli:configure", "run benchmarks, score predictions, and report scores", compiles=False, spins=False),
    "convert": Command(
        "unipixel_jax.convert.cli:configure", "convert weights between torch and JAX, or say what a checkpoint holds", compiles=False, spins=False
    ),
    "data": Command("unipixel_jax.data.cli:configure", "look at training data, and pack it", compiles=False, spins=False),
    "train": Command("unipixel_jax.train.cli:configure", "train a model, or export what was trained", spins=False),
    "export": Command("unipixel_jax.export.cli:configure", "write the parts of inference as ONNX or StableHLO"),
    "plan": Command("unipixel_jax.plan.cli:configure", "say whether a run fits a topology, and what it costs there"),
    "bench": Command("unipixel_jax.bench.cli:configure", "measure speed", compiles=False, spins=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 after an error, whose reason is one line on stderr; 130 if interrupted.

    Raises:
        SystemExit: with status 2 for wrong arguments, after an explanation; with 0 after ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be valid text, and a terminal may show ASCII only
    args = argparse.Namespace(verbose=False)
    # Parsing runs as a command too: a parser may import the module whose names it offers as choices, and that import can fail.
    return run_command(lambda: parse(argv, args), verbose=False) or run_command(lambda: _run(args), args.verbose)


def parse(argv: Sequence[str] | None, args: argparse.Namespace) -> int:
    """Parse the arguments. If the command takes fields of a configuration, the arguments that its parser does not know become ``fields``.

    Args:
        argv: the arguments; None for those of the process.
        args: the namespace that they are put into.

    Returns:
        0, the exit status.

    Raises:
        SystemExit: see ``main``.
    """
    _, rest = _parser().parse_known_args(argv, args)
    if "fields" in args:
        args.fields = rest
    elif rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return 0


def _run(args: argparse.Namespace) -> int:
    command = COMMANDS[args.command]
    with ExitStack() as stack:
        _show_progress(args.verbose, command.spins, stack)
        if command.compiles:
            prepare_to_compile()
        if getattr(args, "attention", None) is not None:
            _use_attention(args.attention, stack)
        return int(args.run(args))


def _parser() -> CommandParser:
    parser = CommandParser(prog="unipixel-jax", description="Segment, track and discuss objects named in words, in images and video.")
    parser.add_argument("--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "fish"), help="print a script for a shell to complete commands")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, configure=command.configure)
    return parser


class _PrintCompletion(argparse.Action):
    """Print a shell's completion script for all commands, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        import shtab

        _fill_all(parser)
        print(shtab.complete(parser, values))
        parser.exit()


def _fill_all(parser: argparse.ArgumentParser) -> None:
    """Fill a parser, its commands, and theirs."""
    if isinstance(parser, CommandParser):
        parser.fill()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _fill_all(command)


class _Lines(logging.Handler):
    """Print records as lines that stay. They stay above a progress bar too, since rich replaces sys.stderr while it draws one."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


def _show_progress(verbose: bool, spins: bool, stack: ExitStack) -> None:
    """Show the package's log records until ``stack`` closes.

    Warnings are printed as lines; with ``verbose``, so are the times of the stages. Without it, if ``spins`` is set and stderr is a terminal, a spinner shows
    the latest record of a lower level.
    """
    logger = logging.getLogger("unipixel_jax")
    stack.callback(logger.setLevel, logger.level)
    stack.callback(setattr, logger, "propagate", logger.propagate)
    logger.propagate = False
    lines = _Lines(logging.INFO if verbose else logging.WARNING)
    logger.setLevel(lines.level)
    _add_handler(logger, lines, stack)
    if verbose or not spins or not sys.stderr.isatty():
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", "starting ...")
    stack.enter_context(Live(spinner, console=Console(stderr=True), transient=True, refresh_per_second=12.5, redirect_stdout=sys.stdout.isatty()))
    status = logging.Handler()
    status.addFilter(lambda record: record.levelno < lines.level)
    status.emit = lambda record: spinner.update(text=Text(record.getMessage()))  # type: ignore[method-assign]
    logger.setLevel(logging.DEBUG)
    _add_handler(logger, status, stack)


def _add_handler(logger: logging.Logger, handler: logging.Handler, stack: ExitStack) -> None:
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)


def _use_attention(name: str, stack: ExitStack) -> None:
    from unipixel_jax.ops.attention import BACKENDS, use_attention

    if name not in BACKENDS:
        raise UserError(f"--attention is {name!r}, expected one of {', '.join(BACKENDS)}")
    stack.enter_context(use_attention(name))


if __name__ == "__main__":
    sys.exit(main())
