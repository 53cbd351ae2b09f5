"""The commands `score`, `compare` and `info`: they read files, call the package and make the outputs."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import warnings
from typing import TYPE_CHECKING, Any

from tokenloss import _workers
from tokenloss._config import show_config
from tokenloss._evaluation.comparison import ComparedFiles, ComparisonOptions, compare_files
from tokenloss._evaluation.files import check_needs
from tokenloss._files import WriteError, check_outputs, identity
from tokenloss._outputs import COMPARE_OUTPUTS, RESPONSE_OUTPUTS, SAMPLE_OUTPUTS, SCORE_OUTPUTS
from tokenloss._outputs._base import Candidate, Output
from tokenloss._outputs.json_object import JsonObject
from tokenloss._terminal import Progress, Table, show_tables
from tokenloss.evaluation import NORM_ADVICE, SHIFT_ADVICE, NormWarning, ShiftWarning, evaluate
from tokenloss.formats import open_scores
from tokenloss.formats.responses import is_responses
from tokenloss.formats.samples import is_samples
from tokenloss.responses import compare_responses
from tokenloss.samples import compare_samples

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from tokenloss._outputs._base import TokenBlock


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
    sinks = [_Guarded(output) for output in outputs]
    with _input_errors():
        check_needs(sinks, args.state, args.scheduler, prefix="--")
        _check_stdout([(output.option, output.path) for output in outputs] + [("--state", args.state)])
        with warnings.catch_warnings():
            for warning in ShiftWarning, NormWarning:
                warnings.simplefilter("ignore", warning)  # it is printed on a line
            evaluation = evaluate(
                args.files,
                args.targets,
                segment_ids=args.segment_ids,
                array=args.array,
                kind=args.kind,
                shift=args.shift,
                ignore_index=args.ignore_index,
                lm_head=args.lm_head,
                hidden=args.hidden,
                logit_scale=args.logit_scale,
                softcap=args.softcap,
                part=args.part,
                skip_failed=args.skip_failed,
                n_bytes=args.bytes or 0,
                text=args.text,
                words=args.words,
                top=args.top,
                sinks=sinks,
                state=args.state,
                scheduler=args.scheduler,
                progress=True,
                workers=args.workers,
            )
    _advise_shift(evaluation.figures["fits_better_shifted"])
    if evaluation.figures.get("norm_seems_missing"):
        _warn(NORM_ADVICE)
    if lost := evaluation.figures.get("lost_tops"):
        _warn(f"{lost:,} positions list fewer classes than others: classes of the same text fell together")
    _finish([output for output in outputs if output.path is None], evaluation.figures, evaluation)


class _Guarded(Output):
    """An output whose errors name its option; what is printed is not finished here."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.path, self.option = output.path, output.option
        self.needs_tokens, self.top_k = output.needs_tokens, output.top_k

    @property
    def _name(self) -> str:
        return self.option

    @contextlib.contextmanager
    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> Iterator[None]:
        self._output._of_responses = self._of_responses
        with _output_errors(self.option, self.path), self._output.open(batch, rows, top_k):
            yield

    def add(self, block: TokenBlock) -> None:
        with _output_errors(self.option, self.path):
            self._output.add(block)

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        if self.path is not None:
            _finish([self._output], summary, result)


def compare(args: argparse.Namespace) -> None:
    """Run `tokenloss compare`."""
    with _input_errors():
        are_samples = is_responses(args.base) and is_responses(args.other)
        are_samples = are_samples and (is_samples(args.base) or is_samples(args.other))
    if are_samples:
        _compare_samples(args)
        return
    _refuse(args, ("margin", "cluster"), "is for samples of lm-evaluation-harness")
    if is_responses(args.base) or is_responses(args.other):
        _compare_responses(args)
    else:
        _compare_scores(args)


def _compare_samples(args: argparse.Namespace) -> None:
    """Compare two files of samples of lm-evaluation-harness."""
    unused = ("targets", "segment_ids", "definitions", "base_kind", "base_array", "kind", "array", "shift",
              "ignore_index", "part", "skip_failed", "plot")  # fmt: skip
    _refuse(args, unused, "does not apply to samples of lm-evaluation-harness")
    outputs = _chosen_outputs(SAMPLE_OUTPUTS, args)
    with _input_errors():
        comparison = compare_samples(args.base, args.other, margin=args.margin, cluster=args.cluster)
    _finish(outputs, {"base": args.base, "other": args.other, **comparison.as_dict()}, comparison)


def _refuse(args: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options that would have no effect."""
    defaults = {"definitions": "exact", "ignore_index": -100, "skip_failed": False}
    for name in names:
        if getattr(args, name) != defaults.get(name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")


def _compare_responses(args: argparse.Namespace) -> None:
    """Compare two files of responses, or one with a file of scores."""
    _refuse(args, ("plot", "definitions"), "does not apply to responses: they give a lower bound of the divergence")
    of_base, of_other = ("base_kind", "base_array"), ("kind", "array")
    if is_responses(args.base):
        _refuse(args, of_base, "is for scores, and BASE holds responses")
    if is_responses(args.other):
        _refuse(args, of_other, "is for scores, and OTHER holds responses")
    if is_responses(args.base) and is_responses(args.other):
        _refuse(args, ("targets", "segment_ids", "shift", "ignore_index"), "is for scores, and both hold responses")
    outputs = _chosen_outputs(RESPONSE_OUTPUTS, args)
    with _input_errors():
        comparison = compare_responses(
            args.base,
            args.other,
            part=args.part,
            skip_failed=args.skip_failed,
            targets=args.targets,
            segment_ids=args.segment_ids,
            array=args.base_array or args.array,
            kind=args.base_kind or args.kind,
            ignore_index=args.ignore_index,
            shift=args.shift,
            workers=args.workers,
        )
    _finish(outputs, {"base": args.base, "other": args.other, **comparison.as_dict()}, comparison)


def _compare_scores(args: argparse.Namespace) -> None:
    """Compare two files of scores."""
    _refuse(args, ("part", "skip_failed"), "is for responses of servers")
    outputs = _chosen_outputs(COMPARE_OUTPUTS, args)
    inputs = list(filter(None, [args.base, args.other, args.targets, args.segment_ids]))
    options = ComparisonOptions(args.base_kind, args.kind, args.ignore_index, args.shift, args.definitions)
    with _input_errors():
        named = [(output.option, output.path) for output in outputs if output.path is not None]
        _check_stdout(named)
        check_outputs(named, {identity(path): path for path in inputs})
        base = open_scores(args.base, array=args.base_array, kind=args.base_kind)
        other = open_scores(args.other, array=args.array, kind=args.kind)
        files = ComparedFiles(base, other, args.targets, args.segment_ids)
        workers = args.workers or _workers.default_workers()
        with Progress(base.rows * (base.row_bytes + other.row_bytes)) as progress:
            comparison, figures = compare_files(files, options, workers, progress.advance)
    _advise_shift(figures["fits_better_shifted"])
    _finish(outputs, figures, [Candidate(args.other, None, comparison, figures)])


def _advise_shift(fits_better: bool) -> None:
    """Warn on stderr if targets should have been shifted."""
    if fits_better:
        _warn(SHIFT_ADVICE)


def _warn(message: str) -> None:
    """Print a warning on stderr."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"tokenloss: warning: {message}", file=sys.stderr)


# -- errors, inputs and outputs ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _input_errors(subject: str = "") -> Iterator[None]:
    """Turn errors about input into one line."""
    try:
        yield
    except WriteError as error:
        raise InputError(str(error)) from error
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


def _check_stdout(outputs: Sequence[tuple[str, str | None]]) -> None:
    """Refuse outputs that would replace the file that stdout is."""
    with contextlib.suppress(AttributeError, OSError):  # stdout without a file number
        printed = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(printed.st_mode):
            named = [(name, path) for name, path in outputs if path is not None]
            check_outputs(named, {(printed.st_dev, printed.st_ino): "stdout"})
