"""The commands `score`, `compare` and `info`: they read files, call the package and make the outputs."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import math
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss import _workers
from tokenloss._config import show_config
from tokenloss._evaluation import run
from tokenloss._evaluation.checkpoint import Checkpoint
from tokenloss._evaluation.comparison import ComparisonOptions, compare_files, comparison_summary
from tokenloss._evaluation.plan import Options, by_number, check_different, plan
from tokenloss._evaluation.summary import merge_meters, summary, text_length
from tokenloss._files import identity
from tokenloss._outputs import COMPARE_OUTPUTS, SCORE_OUTPUTS
from tokenloss._outputs.json_object import JsonObject
from tokenloss._terminal import Progress, Table, show_tables
from tokenloss.formats import open_scores

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from tokenloss._evaluation.plan import Shard
    from tokenloss._evaluation.run import ShardResult
    from tokenloss._outputs._base import Output


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
    show_tables("tokenloss", config["version"], [Table(rows)])


def score(args: argparse.Namespace) -> None:
    """Run `tokenloss score`."""
    outputs = _chosen_outputs(SCORE_OUTPUTS, args)
    for option, words in ("state", "stores only sums"), ("scheduler", "returns only sums"):
        for output in outputs:
            if getattr(args, option) and output.needs_tokens:
                raise InputError(f"{output.option} needs every token; --{option} {words}. Use one of them.")
    options = Options(args.array, args.kind, args.ignore_index, args.shift, args.top)
    files, targets = _expanded(args.files), _expanded(args.targets)
    inputs = [*files, *targets, *filter(None, [args.text])]
    _check_output_paths([(output.option, output.path) for output in outputs] + [("--state", args.state)], inputs)
    with _input_errors():
        check_different(inputs)
        shards = plan(files, targets, options)
        n_bytes, n_words = text_length(args.text) if args.text else (args.bytes or 0, 0)
        args.workers = args.workers or (1 if args.scheduler else _workers.default_workers())
    top_k = min(max(output.top_k for output in outputs), shards[0].shape[-1])
    batch, rows = shards[0].scored_shape(options), sum(shard.scored_rows(options) for shard in shards)
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(_output_errors(output.option, output.path))
            stack.enter_context(output.open(batch, rows, top_k))
        start = time.perf_counter()
        results, n_read = _score_shards(args, shards, options, outputs, top_k)
        seconds = time.perf_counter() - start
        meter = merge_meters(results, n_bytes, n_words)
        figures = summary(shards, results, meter, options)
        figures |= {"seconds": seconds, "bytes": n_read, "gb_per_second": math.nan}
        if seconds:
            figures["gb_per_second"] = n_read / seconds / 1e9
        _finish([output for output in outputs if output.path is not None], figures, meter)
    _finish([output for output in outputs if output.path is None], figures, meter)


def compare(args: argparse.Namespace) -> None:
    """Run `tokenloss compare`."""
    outputs = _chosen_outputs(COMPARE_OUTPUTS, args)
    inputs = list(filter(None, [args.base, args.other, args.targets]))
    _check_output_paths([(output.option, output.path) for output in outputs], inputs)
    options = ComparisonOptions(args.base_kind, args.kind, args.ignore_index, args.shift, args.definitions)
    with _input_errors():
        base = open_scores(args.base, array=args.base_array, kind=args.base_kind)
        other = open_scores(args.other, array=args.array, kind=args.kind)
        workers = args.workers or _workers.default_workers()
        with Progress(base.rows * (base.row_bytes + other.row_bytes)) as progress:
            comparison = compare_files(base, other, args.targets, options, workers, progress.advance)
    _finish(outputs, comparison_summary(base, other, comparison, options), comparison)


# -- errors, inputs and outputs ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _input_errors(subject: str = "") -> Iterator[None]:
    """Turn errors about input into one line."""
    try:
        yield
    except OSError as error:
        path = subject or error.filename or "a file"
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ImportError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{subject}: {error}" if subject else str(error)) from error


@contextlib.contextmanager
def _output_errors(option: str, path: str | None) -> Iterator[None]:
    """Turn errors about a file that is written into one line that names it."""
    try:
        yield
    except OSError as error:
        if path is None:  # stdout
            raise
        raise InputError(f"{option} {path}: cannot be written: {error.strerror or error}") from error


def _chosen_outputs(classes: Sequence[type[Output]], args: argparse.Namespace) -> list[Output]:
    """Outputs selected by the arguments; exactly one of them prints."""
    outputs: list[Output] = []
    for output in classes:
        if output.option:
            value = getattr(args, output.option[2:].replace("-", "_"))
        else:
            value = all(other.path is not None for other in outputs)
        if value:
            with _input_errors(output.option):
                outputs.append(output(value if output.writes_file else None))
    return outputs


def _finish(outputs: list[Output], figures: dict[str, Any], result: object) -> None:
    """Write or print outputs."""
    for output in outputs:
        with _output_errors(output.option, output.path):
            output.finish(figures, result)


def _check_output_paths(outputs: Sequence[tuple[str, str | None]], inputs: Sequence[str]) -> None:
    """Refuse outputs that would replace an input, or each other, or that cannot be written, before long work."""
    taken = {identity(path): path for path in inputs}
    with contextlib.suppress(AttributeError, OSError):  # stdout without a file number
        printed = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(printed.st_mode):
            taken[printed.st_dev, printed.st_ino] = "stdout"
    for option, path in outputs:
        if path is None or (Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()):
            continue  # printed, a device, or a pipe
        place = Path(os.path.realpath(path))
        for one in (place, *place.parents):
            if identity(one) in taken:
                what = "would replace" if one == place else "would be written into"
                raise InputError(f"{option} {path}: {what} {taken[identity(one)]}; give another name")
        with _output_errors(option, path):
            if place.is_dir() or not place.parent.is_dir():
                number = errno.EISDIR if place.is_dir() else errno.ENOENT
                raise OSError(number, os.strerror(number))
        taken[identity(place)] = f"what {option} writes"


def _expanded(patterns: Sequence[str]) -> list[str]:
    """Paths that match patterns; those of a pattern are in the order of their numbers."""
    paths = []
    for pattern in patterns:
        matches = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = sorted(glob.glob(pattern, recursive=True), key=by_number)
        if not matches:
            raise InputError(f"{pattern}: matches no file")
        paths += matches
    return paths


# -- shards ------------------------------------------------------------------------------------------------------------


def _score_shards(
    args: argparse.Namespace, shards: list[Shard], options: Options, outputs: list[Output], top_k: int
) -> tuple[list[ShardResult], int]:
    """Result of each shard, and the number of bytes that were read for those without a result in the checkpoint."""
    with _input_errors(), _output_errors("--state", args.state):
        checkpoint = Checkpoint(args.state, options, shards)
    left = [number for number in range(len(shards)) if number not in checkpoint.results]
    with Progress(sum(shards[number].n_bytes for number in left)) as progress:
        if args.scheduler:
            results = _score_on_cluster(args, [shards[number] for number in left], options)
        else:
            chosen = [shards[number] for number in left]
            results = _score_locally(args, chosen, options, outputs, top_k, progress.advance)
        for i, result in results:
            with _output_errors("--state", args.state):
                checkpoint.add(left[i], result)
            if args.scheduler:
                progress.advance(shards[left[i]].n_bytes)
    n_read = sum(checkpoint.results[number].meter.count * shards[number].row_bytes for number in left)
    return [checkpoint.results[number] for number in range(len(shards))], n_read


def _score_locally(
    args: argparse.Namespace,
    shards: list[Shard],
    options: Options,
    outputs: list[Output],
    top_k: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, ShardResult]]:
    """Score shards one by one."""
    outputs = [output for output in outputs if output.needs_tokens]

    def sink(*block: Any) -> None:
        for output in outputs:
            with _output_errors(output.option, output.path):
                output.add(*block)

    for number, shard in enumerate(shards):
        with _input_errors():
            result = run.score_shard(shard, options, args.workers, sink if outputs else None, top_k, advance)
        yield number, result


def _score_on_cluster(
    args: argparse.Namespace, shards: list[Shard], options: Options
) -> Iterator[tuple[int, ShardResult]]:
    """Score shards on a cluster."""
    with _input_errors():
        from tokenloss.dask import map_shards
    function = functools.partial(run.score_shard, options=options, workers=args.workers)
    try:
        yield from map_shards(function, [shard.with_absolute_paths() for shard in shards], args.scheduler)
    except Exception as error:  # whatever a worker met with
        raise InputError(f"{args.scheduler}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
