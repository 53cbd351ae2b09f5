"""The command `tokenloss`: it reads files, calls the package and shows what comes back."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss import LossMeter, __version__, _core, _workers, report
from tokenloss._config import show_config
from tokenloss._rows import Rows
from tokenloss.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss.scores import token_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import EllipsisType
    from typing import NoReturn, TypeAlias

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# What scores may be, the name of their array in a .npz file, and their loss.
_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": cross_entropy,
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}
_BLOCK_BYTES = 32 << 20  # that are mapped at a time
_BLOCK_ROWS = 1 << 20  # and rows, each of which takes some bytes more
_CACHED = 1 << 16  # numbers that stay in a core's cache


class _Refusal(Exception):  # noqa: N818 -- what is wrong is the input, no error of ours
    """What is wrong with the input."""


class _Input(NamedTuple):
    """What files hold."""

    files: list[str]
    kind: str
    scores: Array
    targets: Array
    tokens: Array | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit status: 0, or 1 when nobody reads stdout any more, 2 for bad input (one line on stderr says what is
        wrong with it), 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # text of tokens may be beyond the terminal's encoding
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        print(end="", flush=True)
    except OSError as error:  # stdout's; those of files have become refusals
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again when it exits
        return 1 if isinstance(error, BrokenPipeError) else _fail(f"error: cannot write: {error.strerror}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Refusal as error:
        return _fail(f"error: {error}", 2)
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}", 2)
    return 0


def _fail(message: str, status: int) -> int:
    """Say on one line why there is no result."""
    print(f"tokenloss: {report.printable(message)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise _Refusal(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)  # where a closed pipe is still seen to
        super().exit(status, message)


def _parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = _Parser(
        prog="tokenloss",
        description="Score language-model predictions: loss, perplexity, accuracy.",
        epilog="rich draws the tables and a progress bar where it is installed: pip install 'tokenloss[cli]'",
    )
    parser.add_argument("--version", action="version", version=f"tokenloss {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    score = commands.add_parser(
        "score",
        help="score the predictions that files hold",
        usage="tokenloss score [options] FILE.npz\n       tokenloss score [options] LOGITS.npy TARGETS.npy",
        description="A .npz file holds one of the arrays logits, log_probs and probs (..., V), targets (...) as class "
        "ids or (..., V) as distributions, and perhaps tokens (...), their text. A .npy file is mapped, never loaded "
        "whole, so it may be larger than memory.",
    )
    score.add_argument("file", metavar="FILE", help="a .npz file, or a .npy file of scores")
    score.add_argument("targets", metavar="TARGETS", nargs="?", help="a .npy file of targets")
    score.add_argument("--kind", choices=_LOSSES, help="what a .npy file of scores holds (default: logits)")
    score.add_argument(
        "--ignore-index", type=int, default=-100, metavar="N", help="target of tokens to pass over (default: -100)"
    )
    score.add_argument("--workers", type=_at_least(1), metavar="N", help="threads (default: one for each CPU)")
    score.add_argument(
        "--top", type=_at_least(0), default=5, metavar="K", help="how many of the costliest tokens to list (default: 5)"
    )
    score.set_defaults(run=_score)

    info = commands.add_parser("info", help="show the version, the instruction set in use and the workers")
    info.set_defaults(run=_info)
    for command in (score, info):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """Reader of integers that are not less."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least {least}")

    return read


def _info(args: argparse.Namespace) -> None:
    """Run `tokenloss info`."""
    with _judging("tokenloss"):
        config = show_config(mode="dicts")
    if args.json:
        report.show_json(config)
        return
    rows = [
        ("instruction set", config["instruction_set"], f"of {', '.join(config['available'])}"),
        ("workers", str(config["workers"]), ""),
    ]
    report.show_tables("tokenloss", config["version"], [report.Table(rows)])


def _score(args: argparse.Namespace) -> None:
    """Run `tokenloss score`."""
    given = _read(args.file, args.targets, args.kind)
    with _judging(", ".join(given.files)):
        _check(given, args.ignore_index)
        workers = args.workers or _workers.default_workers()
    figures = _figures(given, args.ignore_index, workers, args.top)
    (report.show_json if args.json else report.show_summary)(figures)


# -- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn whatever keeps a file from being read into one line that names it."""
    try:
        yield
    except _Refusal:
        raise
    except MemoryError as error:
        raise _Refusal(f"{path}: does not fit in memory; arrays in .npy files need not") from error
    except Exception as error:  # what zip, zlib and NumPy's header raise for damaged files is theirs to choose
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _Refusal(f"{path}: cannot be read: {reason.splitlines()[0]}") from error


@contextlib.contextmanager
def _judging(subject: str) -> Iterator[None]:
    """Turn the package's refusals into one line that names the files."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise _Refusal(f"{subject}: {error}") from error


def _read(path: str, targets_path: str | None, kind: str | None) -> _Input:
    """Open one .npz file or two .npy files."""
    if _is_archive(path):
        if targets_path is not None or kind is not None:
            which = "--kind" if targets_path is None else targets_path
            raise _Refusal(f"{path}: a .npz file names its arrays and holds its targets; {which} does not go with it")
        return _read_archive(path)
    if targets_path is None:
        raise _Refusal(f"{path}: a .npy file of scores needs a second file, of their targets")
    if _is_archive(targets_path):
        raise _Refusal(f"{targets_path}: is a .npz file; the targets of a .npy file must be in a .npy file")
    return _Input([path, targets_path], kind or "logits", _map(path), _map(targets_path), None)


def _is_archive(path: str) -> bool:
    """Whether a file is a .npz file, and not a .npy file."""
    with _reading(path), Path(path).open("rb") as file:
        magic = file.read(6)
    if not magic.startswith((b"PK", b"\x93NUMPY")):
        raise _Refusal(f"{path}: is neither a .npy nor a .npz file")
    return magic.startswith(b"PK")


def _read_archive(path: str) -> _Input:
    """Load the arrays of a .npz file."""
    with _reading(path), Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        names = archive.files
        kinds = [name for name in _LOSSES if name in names]
        if len(kinds) != 1 or "targets" not in names:
            raise _Refusal(
                f"{path}: holds {', '.join(names) or 'nothing'}; "
                f"it must hold targets and exactly one of {', '.join(_LOSSES)}"
            )
        arrays = {}
        for name in (kinds[0], "targets", "tokens"):
            if name in names:
                with _reading(f"{path}: {name}"):
                    arrays[name] = np.asarray(archive[name])
    scores, tokens = arrays[kinds[0]], arrays.get("tokens")
    if tokens is not None:
        if tokens.dtype.kind != "U":
            raise _Refusal(f"{path}: tokens has dtype {tokens.dtype}; it must be text")
        if tokens.shape != scores.shape[:-1]:
            raise _Refusal(f"{path}: tokens has shape {tokens.shape}; it must be {scores.shape[:-1]}")
    return _Input([path], kinds[0], scores, arrays["targets"], tokens)


def _map(path: str) -> Array:
    """Map a .npy file."""
    with _reading(path):
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def _map_again(array: Array) -> Array:
    """Map a file anew: pages that were read through the old mapping no longer count as this process's memory."""
    if not isinstance(array, np.memmap):
        return array
    order: Any = "C" if array.flags.c_contiguous else "F"
    with _reading(str(array.filename)):
        return np.memmap(str(array.filename), array.dtype, "r", array.offset, array.shape, order)


# -- scores -----------------------------------------------------------------------------------------------------------


def _check(given: _Input, ignore_index: int) -> None:
    """Have the package judge the arrays, before anything of the size of the scores is read.

    Scores that are all the same stand in for the real ones, so that only class ids are looked at, and all of them.
    """
    scores, targets = given.scores, given.targets
    same = np.broadcast_to(np.zeros((), scores.dtype), scores.shape)
    where = np.False_ if targets.ndim == scores.ndim else None
    rows = Rows(_core.LOG_PROBS, given.kind, same, -1)
    rows.against("targets", _map_again(targets), ignore_index)
    rows.keep(None, where)
    rows.reduce("sum")
    rows.run(None)


def _figures(given: _Input, ignore_index: int, workers: int, top: int) -> dict[str, Any]:
    """Fold the tokens, block by block."""
    kind, scores, targets = given.kind, given.scores, given.targets
    *batch, classes = scores.shape
    rows = math.prod(batch)
    row_bytes = (scores.nbytes + targets.nbytes) // (rows or 1)
    block_rows = max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))
    meter, costliest = LossMeter(), _Costliest(top)
    seen = greedy = 0
    began = time.perf_counter()
    with report.Progress(scores.nbytes) as progress:
        for index in _blocks(batch, block_rows):
            block, ids = _map_again(scores)[index], _map_again(targets)[index]
            options = {"ignore_index": ignore_index, "workers": workers}
            if kind == "logits" and ids.ndim < block.ndim:
                scores_of = token_scores(block, ids, **options)
                nll, kept, ids = scores_of.nll.reshape(-1), scores_of.kept.reshape(-1), ids.reshape(-1)
                greedy += int(np.count_nonzero(scores_of.is_greedy))
            else:
                nll = _LOSSES[kind](block, ids, reduction="none", **options).reshape(-1)
                if ids.ndim == block.ndim:  # distributions; their likeliest class stands for them
                    kept, ids = np.ones(nll.shape, np.bool_), _argmax(ids.reshape(nll.size, classes))
                else:
                    ids = ids.reshape(-1)
                    kept = ids != ignore_index
                greedy += _count_greedy(block.reshape(nll.size, classes), ids, kept)
            meter.update(nll, where=kept)
            costliest.update(nll, ids, kept, seen)
            seen += nll.size
            progress.advance(block.nbytes)
    seconds = time.perf_counter() - began
    n_bytes = meter.count * classes * scores.itemsize
    return {
        "files": given.files,
        "kind": kind,
        "shape": scores.shape,
        "dtype": scores.dtype.name,
        "tokens": meter.count,
        "ignored": rows - meter.count,
        "loss": meter.loss,
        "stderr": meter.stderr,
        "perplexity": meter.perplexity,
        "perplexity_interval": meter.perplexity_interval,
        "bits_per_token": meter.bits_per_token,
        "accuracy": greedy / meter.count if meter.count else math.nan,
        "costliest": costliest.tokens(given.tokens),
        "seconds": seconds,
        "bytes": n_bytes,
        "gb_per_second": n_bytes / seconds / 1e9 if seconds else math.nan,
    }


def _blocks(batch: Sequence[int], most: int) -> Iterator[tuple[int | slice | EllipsisType, ...]]:
    """Indices of a batch's rows in order, at most so many at a time, whatever its layout."""
    if not batch:
        yield (...,)
        return
    first, *others = batch
    inner = math.prod(others)
    if inner > most:
        for i in range(first):
            for index in _blocks(others, most):
                yield (i, *index)
        return
    step = most // (inner or 1)
    for start in range(0, first, step):
        yield (slice(start, start + step), ...)


def _count_greedy(scores: Array, ids: Array, kept: Array) -> int:
    """How many kept targets have their row's first maximum."""
    if not kept.all():
        scores, ids = scores[kept], ids[kept]
    return int(np.count_nonzero(_argmax(scores) == ids))


def _argmax(rows: Array) -> Array:
    """First maximum of each row of (N, V); -1 where there is no class."""
    found = np.full(len(rows), -1)
    # NumPy copies what is read-only, and compares float16 one by one: small pieces that are copied as float32 stay in a
    # core's cache, and are ten times as fast
    dtype = np.float32 if rows.itemsize < 4 else rows.dtype
    step = max(1, _CACHED // (rows.shape[1] or 1))
    for start in range(0, len(rows) if rows.size else 0, step):
        found[start : start + step] = rows[start : start + step].astype(dtype).argmax(-1)
    return found


class _Costliest:
    """Tokens of the highest losses so far, nan above all, earlier ones before later ones of the same loss."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._found: list[tuple[float, int, float, int]] = []  # cost, position, loss, class id

    def update(self, nll: Array, ids: Array, kept: Array, start: int) -> None:
        """Look at a block of tokens, the first of which is at `start`."""
        cost = np.where(np.isnan(nll), np.inf, nll)
        bar = self._found[-1][0] if self._found and len(self._found) == self._top else -np.inf
        new = np.flatnonzero(kept & (cost > bar))
        new = new[np.argsort(-cost[new], kind="stable")[: self._top]]
        self._found += [(float(cost[i]), start + int(i), float(nll[i]), int(ids[i])) for i in new]
        self._found = sorted(self._found, key=lambda found: -found[0])[: self._top]

    def tokens(self, text: Array | None) -> list[dict[str, Any]]:
        """What to say of each; the probability is that of its loss."""
        with np.errstate(over="ignore"):
            return [
                {
                    "position": position,
                    "target": target,
                    "text": None if text is None else str(text.reshape(-1)[position]),
                    "loss": loss,
                    "probability": float(np.exp(-loss)),
                }
                for _, position, loss, target in self._found
            ]
