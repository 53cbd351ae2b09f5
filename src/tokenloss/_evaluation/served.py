"""Comparisons of a sketch with responses of a server that returned the log-probabilities of the sketch's classes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparison import comparison_of, described
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.drafts import acceptance
from tokenloss._comparison.responses import matched
from tokenloss._comparison.sketched import served_columns
from tokenloss._core.errors import raise_error, with_file_names
from tokenloss._core.signature import IdsHash, either
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.compare import COLUMNS, PLACES, SEQUENCES
from tokenloss._evaluation.responses import group_codes, units_of
from tokenloss._evaluation.scored_responses import RowsOfResponses
from tokenloss._evaluation.sequences import groups_of
from tokenloss._evaluation.sink import Block, schema_of
from tokenloss.formats.rounding import Rounding
from tokenloss.formats.scores import joined_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Columns, Float64Array, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.responses import FilesUnit
    from tokenloss._evaluation.run import Run, Work
    from tokenloss.formats.responses import Response, Responses
    from tokenloss.formats.sketch import Sketch

_FITS = "list, at each position, the classes of the sketch and the most likely one of its own: of SGLang ask for "
_FITS += "token_ids_logprob and top_logprobs_num, of vLLM for prompt_logprobs -1"


@record
class ComparedResponses(NamedTuple):
    """Result of a candidate: columns of its tokens in order, the label of each response, and the roundings."""

    columns: Columns
    labels: list[Any]
    rounding: str
    n_rows: int  # of the sketch


def compare_served(
    base: Sketch, models: Mapping[str, Responses], abouts: Sequence[About], options: Options, run: Run
) -> Comparisons[Comparison]:
    """The comparisons of responses with a sketch, whose rows are the tokens of the responses in order."""
    whole = joined_spec(base.specs)
    base = replace(base, specs=(whole,))
    divergences = (*options.divergences, *(["acceptance"] * ("tv" in options.divergences)))
    names = ("file", *PLACES[1:], "text", *COLUMNS, *divergences)
    schema = schema_of(names, ("line", *SEQUENCES, *divergences), (*models,))
    units = units_of(base, models)
    results = run.map(functools.partial(_compare_responses, options=options), units, schema, are_candidates=True)
    facts = run.handles.open(whole).sketch
    assert facts is not None
    output: Comparisons[Comparison] = Comparisons()
    for given, result in zip(abouts, results, strict=True):
        columns = result.columns
        comparison = comparison_of("exact", columns, drawn=(facts.top, facts.tail))
        about: About = {
            **given, "base_kind": whole.kind, "kind": "responses", "files": [*base.paths], "classes": None,
            "shape": (result.n_rows, whole.classes), "n_ignored": result.n_rows - comparison.count, "n_without_next": 0,
        }  # fmt: skip
        if options.by is not None:
            numbers, lengths = np.unique(columns["sequence"], return_counts=True)
            labels = [result.labels[number] for number in numbers.tolist()]
            codes = group_codes(options.by, columns["position"], labels, lengths.tolist())
            about |= groups_of(comparison, options.by, [codes], base.paths[0])
        signed = {
            "kind": either("responses", whole.kind), "dtype": either(result.rounding, whole.dtype),
            "ignored": about["n_ignored"], "ids": IdsHash.of(columns["target"], columns["sequence"]).total,
        }  # fmt: skip
        output[given["name"]] = described(comparison, about, signed)
    lines = {given["name"]: result.columns for given, result in zip(abouts, results, strict=True)}
    run.sinks.finish(output, lambda: Block({}, {name: _sequences(one, lines[name]) for name, one in output.items()}))
    return output


def _sequences(comparison: Comparison, columns: Columns) -> Columns:
    """The table of a candidate's sequences, for sinks, with the line of each response."""
    table = dict(comparison.sequences or {})
    if table and "tv" in comparison.divergences:
        table |= {"acceptance": (comparison.acceptance().sequences or {})["acceptance"]}
    if table:
        first = np.searchsorted(columns["sequence"], table["sequence"])
        table |= {"file": np.zeros(len(first), np.int64), "line": columns["line"][first]}
    return table


def _compare_responses(unit: FilesUnit, work: Work, options: Options) -> ComparedResponses:
    """The compared tokens of a candidate."""
    rows = RowsOfResponses(unit.base, unit.other, True, work)
    facts, path, classes = rows.scores.sketch, unit.other.path, rows.scores.shape[-1]
    assert facts is not None
    parts: list[Columns] = []
    labels, roundings = [], Rounding()
    for number, response, tokens, at in rows.each():
        labels.append(response.label)
        best = matched(response, response, by_id=True)[0]["best"][tokens]
        for part, block in rows.read(at):
            own = tokens[part]
            logprobs = _listed(response, own, block["ids"], at[part], path, unit.base.path)
            for i in np.flatnonzero(best[part] < 0)[:1].tolist():
                got = f"token {own[i]} does not show the most likely class"
                raise_error("record", path=path, line=response.line, got=got, fits=_FITS)
            roundings += (rounding := Rounding.of(logprobs.reshape(-1)))
            with with_file_names(unit.base.path, path, f"line {response.line}"):
                columns = served_columns(
                    block, facts, classes, logprobs, -response.logprobs[own], best[part], rounding.error,
                    options.divergences,
                )  # fmt: skip
            size = len(own)
            parts.append(columns | {
                "segment_ids": np.full(size, number), "sequence": np.full(size, number), "position": own,
                "row": at[part], "target": response.ids[own], "text": response.tokens[own],
                "line": np.full(size, response.line),
            })  # fmt: skip
    if not parts:
        raise_error("content", path=path, got="has no token of the sketch", fits="have the same tokens")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if work.emit:
        shared = {name: columns[name] for name in (*PLACES[1:], "text", "kept", "base_nll")}
        model = {name: columns[name] for name in (*COLUMNS, *options.divergences) if name not in shared}
        if "tv" in model:
            model["acceptance"] = acceptance(columns, options.temperature)
        work.emit(Block(shared, {unit.name: model}))
    work.advance(unit.n_bytes)
    return ComparedResponses(columns, labels, str(roundings), rows.scores.rows)


def _listed(
    response: Response, tokens: IntArray, wanted: IntArray, rows: IntArray, path: str, base: str
) -> Float64Array:
    """The log-probability of each wanted class, -inf of those with a negative id; refused if a response lacks one."""
    sides: list[Any] = [(response.top_ids, response.ids, response.asked_ids)]
    sides.append((response.top_logprobs, response.logprobs, response.asked_logprobs))
    classes, values = (np.column_stack([one for one in side if one is not None])[tokens] for side in sides)
    logprobs = np.full(wanted.shape, -np.inf)
    for i in range(len(tokens)):
        known = np.flatnonzero(~np.isnan(values[i]) & (classes[i] >= 0))
        order = known[np.argsort(classes[i][known], kind="stable")]
        at = np.searchsorted(classes[i][order], wanted[i])
        has_one = np.append(classes[i][order], -1)[at] == wanted[i]
        for class_id in wanted[i][~has_one & (wanted[i] >= 0)][:1].tolist():
            got = f"token {tokens[i]} lists no log-probability of class {class_id}, which row {rows[i]} of {base} has"
            raise_error("record", path=path, line=response.line, got=got, fits=_FITS)
        logprobs[i] = np.where(wanted[i] < 0, -np.inf, np.append(values[i][order], 0.0)[at])
    return logprobs
