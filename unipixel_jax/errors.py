"""The exception type that the command line shows as a single line, and how every command ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

MAX_MESSAGE = 4000
"""The most characters of a message that are shown. A longer message quotes a file, and its beginning says what is wrong."""


class UserError(ValueError):
    """An error that the caller can put right. The message names what was found, what was expected, and what to do."""


class TooLarge(UserError):
    """An input with more bytes, pixels or frames than are taken."""


def run_command(run: Callable[[], int], verbose: bool) -> int:
    """Run a command to its exit status, whatever happens in it.

    Args:
        run: the command; returns its exit status.
        verbose: show the traceback of an error.

    Returns:
        The command's status; 1 after an error, whose reason is one line on stderr; 130 if it was interrupted or told to end.
    """
    try:
        # Pillow warns of faults in files that it reads all the same, and logs what it raises as errors too; a user should see one line of ours instead.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        with _ended_by_signal():
            return run()
    except KeyboardInterrupt:
        return _fail("interrupted; what was not complete was not written", verbose=False, status=130)
    except UserError as error:
        return _fail(str(error), verbose)
    except BrokenPipeError:  # whoever read the output has gone; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return _fail(f"{named or 'a file'}: {error.strerror or error}", verbose)
    except MemoryError as error:
        return _fail(f"not enough memory ({str(error) or 'the system gave none'}): use a smaller input, or a machine with more", verbose)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # some libraries written in Rust raise panics that are no Exception
        return _fail(f"{type(error).__name__}: {error} (this should not happen; --verbose shows where)", verbose)


@contextlib.contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Say how to install the packages that a command imports.

    Args:
        extra: the optional dependencies of this package (as in ``pip install 'unipixel-jax[extra]'``) that contain them.
        what: what the command does, as the beginning of a message.

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}: run pip install 'unipixel-jax[{extra}]'") from error


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows as it is: line breaks become spaces, control characters become escapes, and the length is bounded."""
    flat = " ".join(text.splitlines()) if len(text) <= MAX_MESSAGE else " ".join(text[:MAX_MESSAGE].splitlines()) + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in flat)


def _fail(reason: str, verbose: bool, status: int = 1) -> int:
    if verbose:
        traceback.print_exc()
    print(f"error: {one_line(reason)}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that temporary files are removed; outside the main thread signals stay as they are."""
    try:
        previous = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
