"""The commands `score`, `compare`, `sketch` and `info`: they read files, call the package and make the outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._command.sources import DEFAULTS, Flags, sources_of_comparison, sources_of_texts
from tokenloss._comparison.comparisons import Comparisons, hints_of
from tokenloss._comparison.drafts import check_cost_ratio
from tokenloss._core.advice import advice
from tokenloss._core.arguments import is_given
from tokenloss._core.config import show_config
from tokenloss._core.errors import contextmanager, named, raise_error
from tokenloss._core.files import WriteError
from tokenloss._core.result import Shown, Table, columns_of, facts_of, shown_of
from tokenloss._core.signature import differing_fields
from tokenloss._core.text import as_strict_json, printable, title
from tokenloss._evaluation.compare_files import compare_files
from tokenloss._evaluation.compare_samples import compare_samples
from tokenloss._evaluation.compare_texts import compare_texts
from tokenloss._evaluation.evaluate import evaluate
from tokenloss._evaluation.results import Evaluations
from tokenloss._evaluation.score_tables import difference_note
from tokenloss._evaluation.sink import Sink
from tokenloss._evaluation.sketch import sketch_files
from tokenloss._output import COMPARE_OUTPUTS, SCORE_OUTPUTS, TEXT_OUTPUTS
from tokenloss._output.reports import REPORTS, card, github, junit
from tokenloss._output.terminal import print_as
from tokenloss._statistics import gates as gate_tools
from tokenloss._statistics.groups import columns_of_groups
from tokenloss.formats.content import OF_SCORES
from tokenloss.formats.samples import Samples
from tokenloss.formats.sources import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from tokenloss._core.types import Array
    from tokenloss.formats.sources import Source

_STATUSES = {gate_tools.HOLDS: 0, gate_tools.FAILS: 3, gate_tools.CANNOT_TELL: 4}  # by the verdict of all gates
_GATES = "max_", "min_"  # how their names begin
_OF_TEXTS = ("text", "tokenizer_a", "tokenizer_b")  # all are needed to compare by text
_OF_SCORE = (
    "shift",
    "by",
    "calibration",
    "n_bytes",
    "n_words",
    "text",
    "words",
    "top",
    "state",
    "scheduler",
    "workers",
)
_OF_SKETCH = ("top", "tail", "seed", "append", "shift", "workers")
_OF_COMPARE = (
    "shift", "classes", "definitions", "divergences", "temperature", "by", "calibration", "state", "scheduler",
    "workers",
)  # fmt: skip
_OF_SAMPLES = "is for samples of lm-evaluation-harness"
_NOT_OF_SAMPLES = "does not apply to samples of lm-evaluation-harness"


class InputError(Exception):
    """Bad input; the message is one line."""


def info(args: argparse.Namespace) -> int:
    """Run `tokenloss info`; return the exit status, as all commands do."""
    with _input_errors():
        config = show_config(mode="dicts")
    rows = [
        ("instruction set", config["instruction_set"], f"available: {', '.join(config['available'])}"),
        ("workers", str(config["workers"]), ""),
    ]
    shown = Shown("tokenloss", config["version"], [Table(rows)])
    print_as(args.format, lambda: shown, lambda: config, lambda: columns_of([config]))
    return 0


def score(args: argparse.Namespace) -> int:
    """Run `tokenloss score`."""
    if args.top_k and args.per_token is None:
        raise InputError("--top-k is for --per-token")
    gates = _gates(args)
    with _input_errors():
        named = [_split(text, "FILE") for text in args.source]
    if any(name != path for name, path in named):
        return _print(args, _score_models(args), gates)
    with _input_errors(), _own_warnings():
        sinks = _chosen_outputs(SCORE_OUTPUTS, args)
        evaluation = evaluate(_source(args, args.source), sinks=sinks, **_given(args, _OF_SCORE))
    _warn(evaluation.figures)
    return _print(args, Evaluations({title(evaluation.figures["files"]): evaluation}), gates, is_named=False)


def sketch(args: argparse.Namespace) -> int:
    """Run `tokenloss sketch`."""
    *paths, out = args.source
    if not paths:
        raise InputError(f"FILE {out}: is the only file; it must be followed by the file to write, OUT.sketch")
    with _input_errors(), _own_warnings():
        source: Any = _source(args, paths)
        written = sketch_files(source, out, **_given(args, _OF_SKETCH))
    facts = written._asdict()
    print_as(args.format, written.shown, lambda: facts, lambda: columns_of([facts]))
    return 0


def _score_models(args: argparse.Namespace) -> Evaluations:
    """Score the files of several models, each with its name."""
    with _input_errors():
        models = _named(args.source, "FILE")
    for name, path in models.items():
        if name == path:
            raise InputError(f"FILE {path}: has no name; each FILE must have a name, as in NAME=FILE, or none of them")
    for option in ("--state", *(output.option for output in SCORE_OUTPUTS)):
        if getattr(args, _name_of(option)) is not None:
            raise InputError(f"{option} is for one model; score the models one by one, or leave it out")
    evaluations = Evaluations()
    for name, path in models.items():
        with _input_errors(), _own_warnings():
            evaluations[name] = evaluate(_source(args, [path]), **_given(args, _OF_SCORE))
        _warn(evaluations[name].figures, f"{name}: ")
    if differences := differing_fields(one.signature for one in evaluations.values()):
        _print_warning(difference_note(differences))
    return evaluations


def _source(args: argparse.Namespace, paths: Sequence[str]) -> Source:
    """The files to score, opened as the options say."""
    flags = Flags(args)
    source = flags.source(paths, lm_head=args.lm_head)
    flags.refuse_rest({"": source})
    return source


def _given(args: argparse.Namespace, names: Sequence[str], **others: Any) -> dict[str, Any]:
    """The arguments of these names, and `others`; the progress is drawn."""
    return {name: getattr(args, name) for name in names} | {"progress": True} | others


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Hide the warnings of the functions that run a command: `_warn` prints them, after the work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=__name__)
        yield


def _warn(facts: dict[str, Any], about: str = "") -> None:
    """Print on stderr the warnings about the metrics."""
    for one in advice(facts):
        _print_warning(f"{about}{one.message}")


def _print_warning(message: str) -> None:
    """Print a warning on stderr, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"tokenloss: warning: {printable(message)}", file=sys.stderr)


def compare(args: argparse.Namespace) -> int:
    """Run `tokenloss compare`."""
    if any(getattr(args, name) is not None for name in _OF_TEXTS):
        return _compare_texts(args)
    gates = _gates(args)
    if args.cost_ratio is not None and not args.draft:
        raise InputError("--cost-ratio is given; it must be left out without --draft")
    draft_options = _draft_options(args, gates) if args.draft else {}
    with _input_errors(), _own_warnings():
        others = _named(args.others, "OTHER")
        source, models = sources_of_comparison(Flags(args), args.base, others)
        # besides those that identify a row, tables of drafts have one column
        sinks = _chosen_outputs(COMPARE_OUTPUTS, args, **{"columns": ("acceptance",)} if args.draft else {})
        result: Comparisons[Any]
        if any(isinstance(one, Samples) for one in (source, *models.values())):
            names = (*_OF_COMPARE, "draft", "noise", "sizes")
            _refuse_typed(args, (name for name in names if name != "workers"), _NOT_OF_SAMPLES)
            result = compare_samples(source, models, margin=args.margin, cluster=args.cluster, sinks=sinks)
        else:
            _refuse_typed(args, ("margin",), f"{_OF_SAMPLES}; others have gates, such as --max-perplexity-ratio")
            _refuse_typed(args, ("cluster",), _OF_SAMPLES)
            for one in (source, *models.values()) if args.draft else ():
                require(one, "rows", "draft")
            given = _given(args, (*_OF_COMPARE, "noise"), sizes=_sizes(args.sizes, others), sinks=sinks)
            result = compare_files(source, models, **given | draft_options)
            if args.draft:
                result = Comparisons((name, one.acceptance(cost_ratio=args.cost_ratio)) for name, one in result.items())
    result.detect = args.detect
    _warn(hints_of(result))
    return _print(args, result, gates)


def _draft_options(args: argparse.Namespace, gates: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `compare_files` that `--draft` replaces; options that do not go with it are refused."""
    names = (*gates, "by", "calibration", "plot", "html", "classes", "definitions", "noise", "divergences", "detect")
    with _input_errors():
        _refuse_typed(args, names, "is for divergences, not for the acceptance of drafts")
        check_cost_ratio(args.cost_ratio)
    temperature = 1.0 if args.temperature is None else args.temperature
    return {"temperature": temperature, "classes": "all", "shift": bool(args.shift)}


def _refuse_typed(args: argparse.Namespace, names: Iterable[str], fits: str) -> None:
    """Refuse options that do not apply to the content of the files."""
    for name in names:
        if is_given(getattr(args, name), DEFAULTS.get(name)):
            raise_error("not for", name=name, fits=fits)


def _compare_texts(args: argparse.Namespace) -> int:
    """Run `tokenloss compare --text`, of two models with tokenizers of their own."""
    for name in _OF_TEXTS:
        if getattr(args, name) is None:
            every = ", ".join(map(named, _OF_TEXTS))
            raise InputError(f"{named(name)} is missing; models with different tokenizers need {every}")
    if len(args.others) > 1:
        raise InputError(f"OTHER {args.others[1]}: --text compares two models; leave it out")
    if args.format in REPORTS:
        raise InputError(f"--format {args.format} does not apply to models with different tokenizers (--text)")
    taken = {*_OF_TEXTS, *OF_SCORES, "base", "others", "format", "call", "command_line", "workers"} - {"tokenizer"}
    taken |= {"detect"} | {_name_of(output.option) for output in TEXT_OUTPUTS}
    with _input_errors(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _refuse_typed(args, vars(args).keys() - taken, "does not apply to models with different tokenizers (--text)")
        ((name, path),) = _named(args.others, "OTHER").items()
        sinks = _chosen_outputs(TEXT_OUTPUTS, args)
        a, b = sources_of_texts(args, args.base, path)
        names = a.name, name
        result = compare_texts(a, b, names=names, sinks=sinks, **_given(args, ("text", "shift", "workers")))
        result = dataclasses.replace(result, detect=args.detect)
    for warning in caught:
        _print_warning(str(warning.message))
    print_as(args.format, lambda: shown_of(result), result.to_dict, lambda: columns_of([facts_of(result)]))
    return 0


def _gates(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `check`; empty without gates. Bad limits are refused before anything is read."""
    given = {name: value for name, value in vars(args).items() if name.startswith(_GATES)}
    gates = {name: value for name, value in given.items() if value not in (None, [])}
    if not gates:
        for option in ["--confidence"] * (args.confidence is not None) + ["--format junit"] * (args.format == "junit"):
            raise InputError(f"{option} is for gates, such as {named(next(iter(given)))}")
        return {}
    if "max_kl_quantile" in gates:
        limits = dict(gates["max_kl_quantile"])
        if len(limits) < len(gates["max_kl_quantile"]):
            raise InputError("--max-kl-quantile is given twice for the same fraction")
        gates["max_kl_quantile"] = limits
    if "max_ece" in gates and not args.calibration:
        raise InputError("--max-ece is given; it needs --calibration")
    with _input_errors():
        gate_tools.checked_limits(gates, gates)
    return gates | ({} if args.confidence is None else {"confidence": args.confidence})


def _print(
    args: argparse.Namespace, result: Evaluations | Comparisons[Any], gates: dict[str, Any], is_named: bool = True
) -> int:
    """Print results, with the verdicts of gates if any were given; return the exit status."""
    whole: Any = result if is_named else next(iter(result.values()))
    verdicts, by = None, args.by
    if gates:
        with _input_errors():
            verdicts = result.check(**gates)

    def shown() -> Shown:
        tables: Shown = shown_of(whole)
        return tables if verdicts is None else tables._replace(tables=[*tables.tables, gate_tools.gate_table(verdicts)])

    def facts() -> Any:
        if verdicts is None:
            return whole.to_dict()
        own_gates: dict[str, Any] = as_strict_json({name: gate_tools.gates_in_json(verdicts, name) for name in result})
        every = whole.to_dict()
        if not is_named:
            return every | next(iter(own_gates.values()))
        if isinstance(result, Evaluations):
            return {name: every[name] | own_gates[name] for name in result}
        own_gates = {as_strict_json(name): one for name, one in own_gates.items()}
        return every | {"candidates": [one | own_gates[one["name"]] for one in every["candidates"]]}

    def columns() -> dict[str, Array]:
        groups = [{"name": name} | row for name, one in result.items() for row in facts_of(one)["groups"]] if by else []
        rows = columns_of_groups(groups) if by else result.columns()
        return rows if verdicts is None else rows | gate_tools.gate_columns(verdicts, rows["name"].tolist())

    if args.format == "github":
        with _input_errors():
            print(github(shown(), verdicts))
    elif args.format == "card":
        print(card(result))
    elif verdicts is not None and args.format == "junit":
        print(junit(result, verdicts))
    else:
        print_as(args.format, shown, facts, columns)
    return 0 if verdicts is None else _STATUSES[verdicts.verdict]


def _named(texts: Sequence[str], argument: str) -> dict[str, str]:
    """Paths of models by name, from NAME=FILE, or from a path that is also the name."""
    named: dict[str, str] = {}
    for text in texts:
        name, path = _split(text, argument)
        if name in named:
            raise InputError(f"{argument} {text}: the name {name} is given twice; give another one, NAME=FILE")
        named[name] = path
    return named


def _split(text: str, argument: str) -> tuple[str, str]:
    """Name and path of a model; either may hold an equals sign."""
    parts = _parts(text)
    if _is_found(text) or not parts:
        return text, text
    name, path = next((part for part in parts if _is_found(part[1])), parts[0])
    if not name or not path:
        raise InputError(f"{argument} {text}: has no {'FILE' if name else 'NAME'}; it must be NAME=FILE, or FILE")
    return name, path


def _parts(text: str) -> list[tuple[str, str]]:
    """Each way to split a text at an equals sign."""
    return [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == "="]


def _is_found(path: str) -> bool:
    """Whether a path exists, or a pattern matches one that does."""
    return Path(path).exists() or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))


def _sizes(given: Sequence[str], others: dict[str, str]) -> dict[str, str]:
    """Sizes of candidates by name, from NAME=SIZE, where NAME may also be the path."""
    names = {path: name for name, path in others.items()} | {name: name for name in others}
    sizes: dict[str, str] = {}
    for text in given:
        known = [(names[name], size) for name, size in _parts(text) if name in names and size]
        if not known:
            raise InputError(f"--size {text}: fits no candidate; it must be NAME=FILE or NAME=SIZE, of {list(others)}")
        if known[0][0] in sizes:
            raise InputError(f"--size {text}: the size of {known[0][0]} is given twice")
        sizes |= [known[0]]
    return sizes


# -- errors, inputs and outputs ----------------------------------------------------------------------------------------


@contextmanager
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


def _name_of(option: str) -> str:
    """The name of the argument that an option gives."""
    return option[2:].replace("-", "_")


def _chosen_outputs(classes: Sequence[type[Sink]], args: argparse.Namespace, **others: Any) -> list[Sink]:
    """The outputs that the arguments ask for; `others` are options that the command line lacks."""
    outputs: list[Sink] = []
    given = vars(args) | others
    for output in classes:
        path = given[_name_of(output.option)]
        if path is not None:
            with _input_errors(output.option):
                outputs.append(output(path, **{name: given[name] for name in output.options if name in given}))
                outputs[-1].made_by = args.command_line
    return outputs
