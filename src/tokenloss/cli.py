"""The command `tokenloss`: it reads files, calls the package and shows what comes back."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import glob
import io
import math
import os
import reprlib
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss import __version__, _per_token, _workers, page, plots, report
from tokenloss._config import show_config
from tokenloss._evaluation import run
from tokenloss._evaluation.checkpoint import Checkpoint
from tokenloss._evaluation.comparison import ComparisonOptions, compare_files, comparison_summary
from tokenloss._evaluation.plan import Options, Shard, by_number, check_different, plan
from tokenloss._evaluation.summary import merge_meters, summary, text_length
from tokenloss._files import identity
from tokenloss.formats import KINDS, open_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import NoReturn

    from tokenloss._evaluation.run import ShardResult, Sink

_ALTERNATIVES = 5  # to each token, on a page


_AT_ONCE = 1.0  # seconds in which signals count as one: `timeout` sends two


class _InputError(Exception):
    """What is wrong with the input."""


class _Ended(KeyboardInterrupt):
    """A signal that ends the process."""

    def __init__(self, number: int) -> None:
        self.number = number


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
    """Have SIGTERM and SIGHUP end the work as Ctrl-C does, so that files which are half written are removed."""
    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():
        named = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        # one that is ignored, as nohup has it, or that another handler is waiting for stays so
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
    """Run the command line; the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # text of tokens may be beyond the terminal's encoding
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        print(end="", flush=True)
    except OSError as error:  # stdout's; those of files have become refusals
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again when it exits
        return 1 if isinstance(error, BrokenPipeError) else _fail(f"error: cannot write: {error.strerror}", 2)
    except _InputError as error:
        return _fail(f"error: {error}", 2)
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}", 2)
    return 0


def _fail(message: str, status: int) -> int:
    """Say on one line why there is no result."""
    if sys.stderr is not None:  # where it is closed, print would take stdout
        with contextlib.suppress(OSError):
            print(f"tokenloss: {report.printable(message)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise _InputError(message)

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
        usage="tokenloss score [options] FILE ...\n       tokenloss score [options] LOGITS.npy TARGETS.npy",
        description="A FILE is a .npy, .npz or .safetensors file, a Zarr store, or logits of llama.cpp; several are "
        "shards of one text. It holds scores (..., V) and targets, class ids (...) or distributions (..., V), unless "
        "those are in .npy files of their own. Where arrays have names, they are called logits, log_probs or probs, "
        "targets, and perhaps tokens, the text. Nothing is loaded whole, so files may be larger than memory.",
    )
    score.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=_filled,
        help="scores; of a pattern in quotes, like 'part-*.npz', files are in the order of their numbers",
    )
    score.add_argument(
        "--targets",
        action="append",
        default=[],
        type=_filled,
        metavar="FILE",
        help="a .npy file of targets for each FILE in order, or one for all; a pattern, or given several times",
    )
    text = score.add_mutually_exclusive_group()
    text.add_argument("--bytes", type=_integer(1), metavar="N", help="length of the text, for bits per byte")
    text.add_argument("--text", type=_filled, metavar="FILE", help="the text, for bits per byte, perplexity per word")
    score.add_argument(
        "--top", type=_integer(0), default=5, metavar="K", help="how many of the costliest tokens to list (default: 5)"
    )
    for option, value, words in (
        ("--per-token", "OUT", "write a row for each token: a .npy, .csv or .parquet file"),
        ("--plot", "OUT", "draw the losses: a .png, .svg or .pdf file"),
        ("--html", "OUT", "write a page that shows the text, shaded by its loss"),
        ("--state", "FILE", "keep what was found in each FILE here, and go on from there"),
        ("--scheduler", "ADDRESS", "score on a Dask cluster, say tcp://127.0.0.1:8786"),
    ):
        score.add_argument(option, type=_filled, metavar=value, help=words)
    score.set_defaults(run=_score)

    compare = commands.add_parser(
        "compare",
        help="compare a model, say a quantised one, with its base",
        description="BASE and OTHER are files as those of score, with scores of the same rows and targets that are "
        "the same, unless only one holds any.",
    )
    compare.add_argument("base", type=_filled, metavar="BASE", help="scores of the base model")
    compare.add_argument("other", type=_filled, metavar="OTHER", help="scores of the model")
    compare.add_argument("--targets", type=_filled, metavar="FILE", help="a .npy file of class ids")
    compare.add_argument(
        "--definitions",
        choices=("exact", "llama.cpp"),
        default="exact",
        help="llama.cpp: log-probabilities of BASE as they are, and divergence of those above -16 (default: exact)",
    )
    compare.add_argument("--base-kind", choices=KINDS, help="what BASE holds (default: logits)")
    compare.add_argument("--base-array", type=_filled, metavar="NAME", help="the name of its array")
    compare.add_argument("--plot", type=_filled, metavar="OUT", help="draw the divergences: a .png, .svg or .pdf file")
    compare.set_defaults(run=_compare)

    for command in (score, compare):
        command.add_argument("--kind", choices=KINDS, help="what scores without such a name are (default: logits)")
        command.add_argument(
            "--array", type=_filled, metavar="NAME", help="the array of scores, where it has another name"
        )
        command.add_argument(
            "--shift",
            action="store_true",
            help="each row predicts the next row's target; the last row of a FILE that is one sequence (N, V), the "
            "first target of the next FILE",
        )
        command.add_argument(
            "--ignore-index",
            type=_integer(-(2**63), 2**64 - 1),
            default=-100,
            metavar="N",
            help="target of tokens to pass over (default: -100)",
        )
        command.add_argument(
            "--workers", type=_integer(1, or_else=-1), metavar="N", help="threads (default, and -1: one for each CPU)"
        )

    info = commands.add_parser("info", help="show the version, the instruction set in use and the workers")
    info.set_defaults(run=_info)
    for command in (score, compare, info):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _integer(least: int, most: int = 2**63 - 1, or_else: int | None = None) -> Callable[[str], int]:
    """Reader of integers that are neither less nor more, or that are one other."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most or int(text) == or_else:
                return int(text)
        fits = f"at least {least} and at most {most}" + (f", or {or_else}" if or_else is not None else "")
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no integer of {fits}")

    return read


def _filled(text: str) -> str:
    """Text that is not empty, as that of a variable of the shell which is not set."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no name")
    return text


def _info(args: argparse.Namespace) -> None:
    """Run `tokenloss info`."""
    with _judging():
        config = show_config(mode="dicts")
    if args.json:
        report.show_json(config)
        return
    rows = [
        ("instruction set", config["instruction_set"], f"of {', '.join(config['available'])}"),
        ("workers", str(config["workers"]), ""),
    ]
    report.show_tables("tokenloss", config["version"], [report.Table(rows)])


@contextlib.contextmanager
def _judging(subject: str = "") -> Iterator[None]:
    """Turn what is wrong with input into one line."""
    try:
        yield
    except OSError as error:
        path = subject or error.filename or "a file"
        raise _InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ImportError, IndexError, TypeError, ValueError) as error:
        raise _InputError(f"{subject}: {error}" if subject else str(error)) from error


@contextlib.contextmanager
def _writing(option: str, path: str) -> Iterator[None]:
    """Turn what keeps a file from being written into one line that names it."""
    try:
        yield
    except OSError as error:
        raise _InputError(f"{option} {path}: cannot be written: {error.strerror or error}") from error


def _check_outputs(outputs: dict[str, str | None], inputs: Sequence[str]) -> None:
    """Refuse outputs that would replace what is read, or each other, or that cannot be written, before long work."""
    taken = {identity(path): path for path in inputs}
    with contextlib.suppress(AttributeError, OSError):  # none that has a number
        printed = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(printed.st_mode):
            taken[printed.st_dev, printed.st_ino] = "stdout"
    for option, path in outputs.items():
        if path is None or (Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()):
            continue  # a device, or a pipe
        place = Path(os.path.realpath(path))
        for one in (place, *place.parents):
            if identity(one) in taken:
                what = "would replace" if one == place else "would be written into"
                raise _InputError(f"{option} {path}: {what} {taken[identity(one)]}; give another name")
        with _writing(option, path):
            if place.is_dir() or not place.parent.is_dir():
                number = errno.EISDIR if place.is_dir() else errno.ENOENT
                raise OSError(number, os.strerror(number))
        taken[identity(place)] = f"what {option} writes"


def _expanded(patterns: Sequence[str]) -> list[str]:
    """Paths that patterns stand for; those of a pattern are in the order of their numbers."""
    paths = []
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            found = sorted(glob.glob(pattern, recursive=True), key=by_number)
        if not found:
            raise _InputError(f"{pattern}: matches no file")
        paths += found
    return paths


def _score(args: argparse.Namespace) -> None:
    """Run `tokenloss score`."""
    for kept in ("state", "scheduler"):
        for output in ("per_token", "plot", "html"):
            if getattr(args, kept) and getattr(args, output):
                raise _InputError(
                    f"--{kept} is of sums alone; --{output.replace('_', '-')}, of every token, does not fit"
                )
    options = Options(args.array, args.kind, args.ignore_index, args.shift, args.top)
    if args.per_token:
        with _judging("--per-token"):
            _per_token.check(args.per_token)
    if args.plot:
        with _judging("--plot"):
            plots.check(args.plot)
    files, targets = _expanded(args.files), _expanded(args.targets)
    inputs = [*files, *targets, *filter(None, [args.text])]
    outputs = {f"--{name.replace('_', '-')}": getattr(args, name) for name in ("per_token", "plot", "html", "state")}
    _check_outputs(outputs, inputs)
    with _judging():
        check_different(inputs)
        shards = plan(files, targets, options)
        n_bytes, n_words = text_length(args.text) if args.text else (args.bytes or 0, 0)
        args.workers = args.workers or (1 if args.scheduler else _workers.default_workers())
    top_k = min(_ALTERNATIVES if args.html else 1 if args.plot else 0, shards[0].shape[-1])
    plotted = _per_token.Gathered(top_k, ("nll", "kept", "is_greedy", "top_logprobs")) if args.plot else None
    shown = _per_token.Gathered(top_k, most=page.MOST_TOKENS) if args.html else None
    sinks: list[Sink] = [sink for sink in (plotted, shown) if sink]
    with contextlib.ExitStack() as stack:
        if args.per_token:
            rows = sum(shard.scored_rows(options) for shard in shards)
            stack.enter_context(_writing("--per-token", args.per_token))
            sinks.append(stack.enter_context(_per_token.writing(args.per_token, rows)))
        began = time.perf_counter()
        found, n_read = _found(args, shards, options, sinks, top_k)
        seconds = time.perf_counter() - began
        meter = merge_meters(found, n_bytes, n_words)
        figures = summary(shards, found, meter, options)
        figures |= {"seconds": seconds, "bytes": n_read, "gb_per_second": math.nan}
        if seconds:
            figures["gb_per_second"] = n_read / seconds / 1e9
        title = report.title(figures["files"])
        if plotted:
            _plot_losses(args.plot, plotted.columns(), title)
        if shown:
            scores, ids, text = shown.scores(shards[0].scored_shape(options))
            with _writing("--html", args.html):
                page.write_page(
                    args.html, scores, ids, tokens=text, title=title, meter=meter, accuracy=figures["accuracy"]
                )
    (report.show_json if args.json else report.show_summary)(figures)


def _plot_losses(path: str, columns: dict[str, Any], title: str) -> None:
    """Draw the losses, and how well the greedy probability is calibrated if there is one."""
    greedy = {}
    if "top_logprobs" in columns:
        greedy = {"greedy_logprobs": columns["top_logprobs"][:, 0], "is_greedy": columns["is_greedy"]}
    figure = plots.draw_losses(columns["nll"], where=columns["kept"], title=title, **greedy)
    with _writing("--plot", path):
        plots.save(figure, path)


def _found(
    args: argparse.Namespace,
    shards: list[Shard],
    options: Options,
    sinks: list[Sink],
    top_k: int,
) -> tuple[list[ShardResult], int]:
    """What is found in each shard, and how many bytes were read; of those of an earlier run none are."""
    with _judging(), _writing("--state", args.state):
        state = Checkpoint(args.state, options, shards)
    left = [number for number in range(len(shards)) if number not in state.results]
    with report.Progress(sum(shards[number].n_bytes for number in left)) as progress:
        if args.scheduler:
            results = _found_elsewhere(args, [shards[number] for number in left], options)
        else:
            results = _found_here(args, [shards[number] for number in left], options, sinks, top_k, progress.advance)
        for i, found in results:
            with _writing("--state", args.state):
                state.add(left[i], found)
            if args.scheduler:
                progress.advance(shards[left[i]].n_bytes)
    n_read = sum(state.results[number].meter.count * shards[number].row_bytes for number in left)
    return [state.results[number] for number in range(len(shards))], n_read


def _found_here(
    args: argparse.Namespace,
    shards: list[Shard],
    options: Options,
    sinks: list[Sink],
    top_k: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, ShardResult]]:
    """Score shards one by one."""

    def sink(*block: Any) -> None:
        with _writing("--per-token", args.per_token):
            for one in sinks:
                one(*block)

    for number, shard in enumerate(shards):
        with _judging():
            found = run.score_shard(shard, options, args.workers, sink if sinks else None, top_k, advance)
        yield number, found


def _found_elsewhere(
    args: argparse.Namespace, shards: list[Shard], options: Options
) -> Iterator[tuple[int, ShardResult]]:
    """Score shards on a cluster."""
    with _judging():
        from tokenloss.dask import map_shards
    function = functools.partial(run.score_shard, options=options, workers=args.workers)
    try:
        yield from map_shards(function, [shard.with_absolute_paths() for shard in shards], args.scheduler)
    except Exception as error:  # whatever a worker met with
        raise _InputError(f"{args.scheduler}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _compare(args: argparse.Namespace) -> None:
    """Run `tokenloss compare`."""
    if args.plot:
        with _judging("--plot"):
            plots.check(args.plot)
    _check_outputs({"--plot": args.plot}, list(filter(None, [args.base, args.other, args.targets])))
    options = ComparisonOptions(args.base_kind, args.kind, args.ignore_index, args.shift, args.definitions)
    with _judging():
        base = open_scores(args.base, array=args.base_array, kind=args.base_kind)
        other = open_scores(args.other, array=args.array, kind=args.kind)
        workers = args.workers or _workers.default_workers()
        with report.Progress(base.rows * (base.row_bytes + other.row_bytes)) as progress:
            found = compare_files(base, other, args.targets, options, workers, progress.advance)
    if args.plot:
        with _writing("--plot", args.plot):
            plots.save(plots.draw_divergences(found.kl, where=found.kept, title=args.other), args.plot)
    figures = comparison_summary(base, other, found, options)
    if args.json:
        report.show_json(figures)
    else:
        note = f"{found.count:,} tokens, {found.definitions} definitions; {other.kind} beside {base.kind}"
        report.show_tables(f"{args.other} beside {args.base}", note, report.comparison_tables(found))
