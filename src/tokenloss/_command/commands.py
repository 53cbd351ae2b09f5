"""The commands `score`, `compare` and `info`: they read files, call the package and make the outputs."""

from __future__ import annotations

import contextlib
import glob
import inspect
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.config import show_config
from tokenloss._core.errors import OptionError, contextmanager
from tokenloss._core.files import WriteError
from tokenloss._core.result import Shown, Table
from tokenloss._evaluation.compare_files import compare_files
from tokenloss._evaluation.evaluate import advice, evaluate
from tokenloss._evaluation.sink import Sink
from tokenloss._output import COMPARE_OUTPUTS, SCORE_OUTPUTS
from tokenloss._output.terminal import JsonObject, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence


class InputError(Exception):
    """Bad input; the message is one line."""


def info(args: argparse.Namespace) -> None:
    """Run `tokenloss info`."""
    with _input_errors():
        config = show_config(mode="dicts")
    if args.json:
        JsonObject(None).finish(config, None)
        return
    rows = [
        ("instruction set", config["instruction_set"], f"of {', '.join(config['available'])}"),
        ("workers", str(config["workers"]), ""),
    ]
    show(Shown("tokenloss", config["version"], [Table(rows)]))


def score(args: argparse.Namespace) -> None:
    """Run `tokenloss score`."""
    outputs = _chosen_outputs(SCORE_OUTPUTS, args)
    with _input_errors(), _own_warnings():
        evaluation = evaluate(**_arguments(evaluate, args, sinks=_files(outputs), progress=True))
    _warn(evaluation.figures)
    _print(outputs, evaluation.figures, evaluation)


def _arguments(function: Callable[..., Any], args: argparse.Namespace, **others: Any) -> dict[str, Any]:
    """Collect the arguments of a function: options of the command line with the name of a parameter, and `others`."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(args).items() if name in names} | others


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Hide the warnings of the functions that run a command: `_warn` prints them, after the work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=__name__)
        yield


def _files(outputs: Sequence[Sink]) -> list[Sink]:
    """The outputs that write files."""
    return [output for output in outputs if output.path is not None]


def _warn(figures: dict[str, Any]) -> None:
    """Print on stderr what the figures warn of."""
    for message, _ in advice(figures) if sys.stderr is not None else ():
        with contextlib.suppress(OSError):
            print(f"tokenloss: warning: {message}", file=sys.stderr)


def _print(outputs: Sequence[Sink], figures: dict[str, Any], result: Any) -> None:
    """Print the result by the one output that writes no file."""
    for output in outputs:
        if output.path is None:
            output.finish(figures, result)


def compare(args: argparse.Namespace) -> None:
    """Run `tokenloss compare`."""
    outputs = _chosen_outputs(COMPARE_OUTPUTS, args)
    with _input_errors(), _own_warnings():
        others = _named(args.others)
        models = {"others": others, "lm_head": args.lm_head or None, "sizes": _sizes(args.size, others)}
        found = compare_files(**_arguments(compare_files, args, **models, sinks=_files(outputs), progress=True))
    figures = found._figures()
    _warn(figures)
    _print(outputs, figures, found)


def _named(others: Sequence[str]) -> dict[str, str]:
    """Paths of candidates by name, given NAME=FILE or a path that is its own name."""
    named: dict[str, str] = {}
    for text in others:
        name, path = _split(text)
        if name in named:
            raise InputError(f"OTHER {text}: the name {name} is given twice; give another one, NAME=FILE")
        named[name] = path
    return named


def _split(text: str) -> tuple[str, str]:
    """Name and path of a candidate; either may hold an equals sign."""
    parts = _parts(text)
    if _is_found(text) or not parts:
        return text, text
    name, path = next((part for part in parts if _is_found(part[1])), parts[0])
    if not name or not path:
        raise InputError(f"OTHER {text}: has no {'FILE' if name else 'NAME'}; it must be NAME=FILE, or FILE")
    return name, path


def _parts(text: str) -> list[tuple[str, str]]:
    """Each way to split a text at an equals sign."""
    return [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == "="]


def _is_found(path: str) -> bool:
    """Whether a path exists, or a pattern matches one that does."""
    return Path(path).exists() or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))


def _sizes(given: Sequence[str], others: dict[str, str]) -> dict[str, str]:
    """Sizes of candidates by name, given NAME=SIZE, where NAME may also be the path."""
    names = {path: name for name, path in others.items()} | {name: name for name in others}
    found: dict[str, str] = {}
    for text in given:
        known = [(names[name], size) for name, size in _parts(text) if name in names and size]
        if not known:
            raise InputError(f"--size {text}: names no candidate; it must be NAME=FILE or NAME=SIZE, of {list(others)}")
        if known[0][0] in found:
            raise InputError(f"--size {text}: the size of {known[0][0]} is given twice")
        found |= [known[0]]
    return found


# -- errors, inputs and outputs ----------------------------------------------------------------------------------------


@contextmanager
def _input_errors(subject: str = "") -> Iterator[None]:
    """Turn errors about input into one line."""
    try:
        yield
    except WriteError as error:
        raise InputError(str(error)) from error
    except OptionError as error:
        name, _, reason = str(error).partition(" ")
        name = "size" if name == "sizes" else name.lstrip("-").replace("_", "-")
        raise InputError(f"--{name} {reason}") from error
    except OSError as error:
        path = subject or error.filename or "a file"
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ImportError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{subject}: {error}" if subject else str(error)) from error


def _name_of(output: type[Sink]) -> str:
    """The name of the argument that asks for an output."""
    return output.option[2:].replace("-", "_")


def _chosen_outputs(classes: Sequence[type[Sink]], args: argparse.Namespace) -> list[Sink]:
    """The outputs that the arguments ask for; exactly one of them prints."""
    outputs: list[Sink] = []
    for output in classes:
        value = getattr(args, _name_of(output)) if output.option else all(other.path is not None for other in outputs)
        if value:
            with _input_errors(output.option):
                outputs.append(output(value if output.writes_file else None))
                outputs[-1]._is_option = bool(output.option)
    return outputs
