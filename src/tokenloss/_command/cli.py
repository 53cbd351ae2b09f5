"""The command `tokenloss`: its arguments, exit status and signals."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from tokenloss._command.arguments import make_parser
from tokenloss._command.commands import InputError
from tokenloss._command.parser import NoArgumentsError
from tokenloss._core.errors import naming_options
from tokenloss._core.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_AT_ONCE = 1.0  # seconds: signals that come within these count as one, since `timeout` sends two


class _Ended(KeyboardInterrupt):
    """A signal that ends the process."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments of the command line; by default, those that the process was started with.

    Returns
    -------
    int
        The exit status: 0, or 1 when nobody reads stdout any more, 2 for bad input (one line on stderr says what is
        wrong with it), 3 if a gate fails, 4 if the data cannot decide whether one does, 130 after Ctrl-C, 128 and
        the number of a signal that ended it.
    """
    try:
        with _ending_on_signals():
            return _run(argv)
    except _Ended as error:
        return _fail(f"ended by {signal.Signals(error.number).name}", 128 + error.number)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does, so that half-written files are removed."""
    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():
        named = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        # a signal that is ignored, as under nohup, or that has another handler, is left as it is
        numbers = [number for number in named if number and signal.getsignal(number) == signal.SIG_DFL]
    last = -math.inf

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _AT_ONCE:
            raise _Ended(number)

    try:
        for number in numbers:
            signal.signal(number, end)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _run(argv: Sequence[str] | None) -> int:
    """Run the command line; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack characters of tokens
    try:
        words = sys.argv[1:] if argv is None else argv
        parser = make_parser()
        with naming_options(parser.options()):
            args = parser.parse_args(words)
            args.command_line = shlex.join(["tokenloss", *words])
            status: int = args.call(args)
        print(end="", flush=True)
    except OSError as error:  # stdout cannot be written; errors of files have become input errors
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # since Python flushes it again at exit
        return 1 if isinstance(error, BrokenPipeError) else _fail(f"error: cannot write: {error.strerror}", 2)
    except NoArgumentsError as error:
        _print_error(f"{error}".rstrip())
        return 2
    except InputError as error:
        return _fail(f"error: {error}", 2)
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}", 2)
    return status


def _fail(message: str, status: int) -> int:
    """Print one line with the reason why there is no result; return the exit status."""
    _print_error(f"tokenloss: {printable(message)}")
    return status


def _print_error(text: str) -> None:
    """Print on stderr."""
    if sys.stderr is not None:  # print would write to stdout if stderr is closed
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr)
