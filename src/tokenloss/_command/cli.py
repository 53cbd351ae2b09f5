"""The command `tokenloss`: its arguments, exit status and signals."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import reprlib
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tokenloss._command import commands
from tokenloss._command.commands import InputError
from tokenloss._core._core import KINDS
from tokenloss._core.text import printable
from tokenloss._core.version import __version__
from tokenloss._evaluation.summary import WORDS
from tokenloss._output import COMPARE_OUTPUTS, RESPONSE_OUTPUTS, SAMPLE_OUTPUTS, SCORE_OUTPUTS
from tokenloss._output.terminal import JsonObject
from tokenloss.formats.lm_head import HEAD_FILES
from tokenloss.formats.readers import FILES
from tokenloss.formats.responses import PARTS_OF_RESPONSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType
    from typing import NoReturn

    from tokenloss._evaluation.sink import Sink

_LM_HEAD = (
    "the files hold hidden states after the final norm, and this is their projection onto the vocabulary: "
    f"{HEAD_FILES}; config.json beside it says how logits are scaled and capped, and whether the embedding is the head"
)
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
        wrong with it), 130 after Ctrl-C, 128 and the number of a signal that ended it.
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
        # a signal that is ignored, as under nohup, or that has another handler, is left alone
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
        argv = sys.argv[1:] if argv is None else argv
        args = _parser().parse_args(argv)
        args.command_line = shlex.join(["tokenloss", *argv])
        args.run(args)
        print(end="", flush=True)
    except OSError as error:  # stdout cannot be written; errors of files have become input errors
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # since Python flushes it again at exit
        return 1 if isinstance(error, BrokenPipeError) else _fail(f"error: cannot write: {error.strerror}", 2)
    except InputError as error:
        return _fail(f"error: {error}", 2)
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}", 2)
    return 0


def _fail(message: str, status: int) -> int:
    """Print in one line why there is no result; return the exit status."""
    if sys.stderr is not None:  # print would write to stdout if stderr is closed
        with contextlib.suppress(OSError):
            print(f"tokenloss: {printable(message)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)  # here, a closed pipe is still handled
        super().exit(status, message)


def _parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = _Parser(
        prog="tokenloss",
        description="Score language-model predictions: loss, perplexity, accuracy.",
        epilog="rich draws the tables and a progress bar where it is installed: pip install 'tokenloss[cli]'",
    )
    parser.add_argument("--version", action="version", version=f"tokenloss {__version__}")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)

    score = subcommands.add_parser(
        "score",
        help="score the predictions that files hold",
        usage="tokenloss score [options] FILE ...\n       tokenloss score [options] LOGITS.npy TARGETS.npy",
        description=f"A FILE is {FILES}; several are shards of one text. It holds scores (..., V) and their targets, "
        "class ids (...) or distributions (..., V), unless the targets are in .npy files of their own. Named arrays "
        "are logits, log_probs or probs; targets; and, if there are any, tokens (the text) and segment_ids or "
        "cu_seqlens (the sequences). Each row of (N, T, V) is a sequence. With --lm-head, a FILE holds hidden states "
        "(..., D), named hidden_states or hidden. It may also be a .json or .jsonl file of responses from a server: "
        "vLLM, SGLang, llama.cpp or any with OpenAI's layout. Nothing is loaded whole, so files may be larger than "
        "memory.",
    )
    _add_score_arguments(score)
    compare = subcommands.add_parser(
        "compare",
        help="compare models, such as quantised ones, with their base",
        usage="tokenloss compare [options] BASE [NAME=]OTHER ...",
        description="BASE and each OTHER are files as `score` reads them, with scores of the same rows. Any of them "
        "may hold the targets; all that do must hold the same ones. BASE is read once for all. Or BASE and OTHER are "
        "two files of responses to the same requests, a file of scores and one of responses, or two .jsonl files of "
        "samples that lm-evaluation-harness logged.",
    )
    _add_compare_arguments(compare)
    for command in (score, compare):
        _add_common_arguments(command)
    info = subcommands.add_parser("info", help="show the version, the instruction set in use and the number of threads")
    info.set_defaults(run=commands.info)
    _add_outputs(score, SCORE_OUTPUTS)
    _add_outputs(compare, (*COMPARE_OUTPUTS, *RESPONSE_OUTPUTS, *SAMPLE_OUTPUTS))
    _add_outputs(info, [JsonObject])
    return parser


_LISTED: dict[str, Any] = {"action": "append", "default": []}  # an option that may be given several times


def _add_score_arguments(score: argparse.ArgumentParser) -> None:
    """Describe the arguments of `tokenloss score` alone; values have the names that `evaluate` gives them."""
    score.set_defaults(run=commands.score)
    words = (
        "a file of scores, a directory of files, or a pattern in quotes, such as 'part-*.npz'; the files of a "
        "directory or pattern are read in the order of their numbers"
    )
    score.add_argument("source", metavar="FILE", nargs="+", type=_filled, help=words)
    text = score.add_mutually_exclusive_group()
    _add(text, "--n-bytes N", "length of the text in bytes, for bits per byte", _integer(1), default=0)
    _add(text, "--text FILE", "the text, for bits per byte and perplexity per word")
    _add(score, "--top K", "list the K tokens and K sequences with the highest losses (default: 5)", _integer(0),
         default=5)  # fmt: skip
    words = "how to count the words of --text: between white space (default), or as lm-evaluation-harness does"
    score.add_argument("--words", choices=tuple(WORDS), default="whitespace", help=words)
    _add(score, "--lm-head FILE[:NAME]", _LM_HEAD)


def _add_compare_arguments(compare: argparse.ArgumentParser) -> None:
    """Describe the arguments of `tokenloss compare` alone; values have the names that `compare_files` gives them."""
    compare.set_defaults(run=commands.compare, default=compare.get_default)
    words = "scores of the base model: a file, a directory of shards, or a pattern of their names in quotes"
    compare.add_argument("base", type=_filled, metavar="BASE", help=words)
    words = "scores of a model, of the same rows: FILE or NAME=FILE"
    compare.add_argument("others", metavar="OTHER", nargs="+", type=_filled, help=words)
    words = (
        "formulas of the figures: llama.cpp takes the log-probabilities of BASE as they are, and the divergence over "
        "those above -16 (default: exact)"
    )
    compare.add_argument("--definitions", choices=("exact", "llama.cpp"), default="exact", help=words)
    _add(compare, "--classes N", "compare only the first N classes, where vocabularies differ", _integer(1))
    words = "what the scores of BASE are, where their name does not say it (default: logits)"
    compare.add_argument("--base-kind", choices=KINDS, help=words)
    _add(compare, "--base-array NAME", "name of the array of scores of BASE")
    _add(compare, "--base-lm-head FILE[:NAME]", "--lm-head of BASE, if it has another one")
    _add(compare, "--base-hidden NAME", "name of the array of hidden states of BASE, if it has another one")
    each = "one for all, and for BASE unless --base-kind or --base-array is given; or one for each OTHER in order"
    _add(compare, "--lm-head FILE[:NAME]", f"{_LM_HEAD}; {each}", **_LISTED)
    words = "size of the model of an OTHER: a file, a directory, or a number of bytes such as 4.9G"
    _add(compare, "--size NAME=SIZE", words, **_LISTED)
    words = "for samples of lm-evaluation-harness: test whether both models are equal within M, such as 0.01"
    _add(compare, "--margin M", words, _fraction)
    words = "for samples: the field of a document that names its group, by which errors are clustered"
    _add(compare, "--cluster FIELD", words)


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    """Describe the arguments of both `tokenloss score` and `tokenloss compare`."""
    words = "a .npy file of targets for each file of scores, in order, or one for all; or a pattern in quotes"
    _add(command, "--targets FILE", words, **_LISTED)
    words = "a .npy file of each token's sequence number for each file of scores, or one for all"
    _add(command, "--segment-ids FILE", words, **_LISTED)
    _add(command, "--hidden NAME", "name of the array of hidden states")
    words = "multiplier of the logits of hidden states (default: by the model's config.json, or 1)"
    _add(command, "--logit-scale X", words, _number)
    words = "soft cap of the logits of hidden states, 0 for none (default: by the model's config.json, or none)"
    _add(command, "--softcap X", words, _number)
    words = (
        "the part of responses to read (default: the prompt where it has log-probabilities, else what was generated)"
    )
    command.add_argument("--part", choices=PARTS_OF_RESPONSE, help=words)
    words = "leave out the failed lines of a batch of responses"
    command.add_argument("--skip-failed", action="store_true", help=words)
    words = "what the scores are, where the name of their array does not say it (default: logits)"
    command.add_argument("--kind", choices=KINDS, help=words)
    _add(command, "--array NAME", "name of the array of scores, if it is not the name of a kind")
    words = (
        "the targets are the input ids of a causal model: row j predicts id j+1, and the last row of a FILE that is "
        "one sequence (N, V) predicts the first id of the next FILE; --no-shift: the targets are right as they are"
    )
    command.add_argument("--shift", action=argparse.BooleanOptionalAction, help=words)
    words = "target value that marks tokens to ignore, such as padding (default: -100)"
    _add(command, "--ignore-index N", words, _integer(-(2**63), 2**64 - 1), default=-100)
    _add(command, "--state FILE", "checkpoint: save the result of each file of scores here, and resume from it")
    _add(command, "--scheduler ADDRESS", "work on the Dask cluster at this address, such as tcp://127.0.0.1:8786")
    words = "number of threads (default, and -1: one for each CPU)"
    _add(command, "--workers N", words, _integer(1, or_else=-1))


def _add_outputs(command: argparse.ArgumentParser, outputs: Iterable[type[Sink]]) -> None:
    """Add the options of outputs. Where several have the same option, the help of the first is shown."""
    by_option: dict[str, type[Sink]] = {}
    for output in outputs:
        by_option.setdefault(output.option, output)
    for option, output in by_option.items():
        if option and output.writes_file:
            _add(command, f"{option} OUT", output.help)
        elif option:
            command.add_argument(option, action="store_true", help=output.help)


def _filled(text: str) -> str:
    """Argument type of text that must not be empty, as it is where a shell variable is not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; it must be a name")
    return text


def _add(
    command: argparse._ActionsContainer, names: str, words: str, kind: Callable[[str], Any] = _filled, **options: Any
) -> None:
    """Add an option; `names` are its own and that of its value, and `kind` makes the value from text."""
    option, value = names.split()
    command.add_argument(option, metavar=value, help=words, type=kind, **options)


def _integer(least: int, most: int = 2**63 - 1, or_else: int | None = None) -> Callable[[str], int]:
    """Argument type of integers from `least` to `most`, or equal to `or_else`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most or int(text) == or_else:
                return int(text)
        is_large = text.isdecimal() and (len(text) > len(str(most)) or int(text) > most)
        fits = f"at most {most}" if is_large else f"at least {least}"
        fits += "" if or_else is None else f", or {or_else}"
        raise argparse.ArgumentTypeError(f"must be an integer of {fits}, not {reprlib.repr(text)}")

    return read


def _number(text: str) -> float:
    """Argument type of numbers."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {reprlib.repr(text)}") from None


def _fraction(text: str) -> float:
    """Argument type of numbers between 0 and 1, both excluded."""
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {reprlib.repr(text)}")
    return number
