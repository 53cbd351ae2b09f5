"""What CI systems and model cards read: GitHub's workflow commands, JUnit's XML, and a `model-index`."""

from __future__ import annotations

import json
import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.estimate import Estimate
from tokenloss._core.files import write_errors
from tokenloss._core.result import Shown, Table, as_markdown, as_text, facts_of
from tokenloss._core.text import as_strict_json, printable, title
from tokenloss._statistics.gates import CANNOT_TELL, FAILS, HOLDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenloss._statistics.gates import Verdict, Verdicts

REPORTS = ("github", "junit", "card")
_COMMANDS = {FAILS: "error", CANNOT_TELL: "warning"}  # of GitHub, by the verdict
_ELEMENTS = {FAILS: "failure", CANNOT_TELL: "error"}  # of JUnit: what passes unseen must not be undecided
_LOWER, _HIGHER = "lower is better", "higher is better"
# by the attribute of a result: the type of a metric on cards, its name, unit and direction
_METRICS = {
    "perplexity": ("perplexity", "Perplexity", "1", _LOWER),
    "loss": ("loss", "Mean loss", "nats per token", _LOWER),
    "bits_per_byte": ("bits_per_byte", "Bits per byte", "bits", _LOWER),
    "accuracy": ("accuracy", "Greedy accuracy", "fraction of tokens", _HIGHER),
    "mean_kl": ("kl_divergence", "Mean KL divergence from the base", "nats per token", _LOWER),
    "mean_kl_bound": ("kl_divergence_bound", "Lower bound on the mean KL divergence", "nats per token", _LOWER),
    "perplexity_ratio": ("perplexity_ratio", "Perplexity over that of the base", "1", _LOWER),
    "same_top": ("top_1_agreement", "Top-1 agreement with the base", "fraction of tokens", _HIGHER),
    "mean_acceptance": ("acceptance", "Acceptance of drafted tokens", "fraction of tokens", _HIGHER),
    "k3": ("kl_divergence_k3", "KL divergence of trainer and sampler, by k3", "nats per token", _LOWER),
    "ess": ("effective_sample_size", "Effective sample size", "fraction of tokens", _HIGHER),
}


def github(shown: Shown, verdicts: Verdicts | None) -> str:
    """The tables, and a workflow command for each gate that does not hold; appends Markdown to the step's summary.

    No line of a table is treated as a command, whatever the names of files are.
    """
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with write_errors(path), Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{as_markdown(shown)}\n\n")
    lines = re.sub(r"^(\s*)(::|##\[)", r"\1\\\2", as_text(shown), flags=re.MULTILINE).splitlines()
    for one in verdicts.gates if verdicts else ():
        if one.verdict != HOLDS:
            head = _escaped(f"{one.name}: {one.gate}" if one.name else one.gate)
            head = head.replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::{_COMMANDS[one.verdict]} title={head}::{_escaped(_words(one))}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """The text as the message of a workflow command."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _words(one: Verdict) -> str:
    """The verdict on a gate in a sentence."""
    low, high = one.interval
    interval = "" if math.isnan(low) else f" ({low:.5g} to {high:.5g})"
    return f"{one.verdict}: {one.figure:.5g}{interval}, limit {one.limit:g}" + f"; {one.note}" * bool(one.note)


def junit(results: Mapping[str, Any], verdicts: Verdicts) -> str:
    """The XML of a test suite for each model, with a test case for each gate; undecided gates are errors."""
    from xml.sax.saxutils import escape, quoteattr

    def element(tag: str, content: str | None = None, **attributes: object) -> str:
        texts = (f" {name}={quoteattr(printable(str(value)))}" for name, value in attributes.items())
        return f"<{tag}{''.join(texts)}" + ("/>" if content is None else f">{content}</{tag}>")

    suites = []
    for number, (name, result) in enumerate(results.items()):
        gates, cases = [one for one in verdicts.gates if one.name == name], []
        for one in gates:
            kind, content = _ELEMENTS.get(one.verdict), None
            if kind is not None:
                content = element(kind, escape(printable(one.note)), message=_words(one), type=one.verdict)
            cases.append(element("testcase", content, name=one.gate, classname=f"tokenloss.{name}", time=0))
        facts = {"signature": result.signature, "confidence": verdicts.confidence}
        properties = "".join(element("property", name=key, value=value) for key, value in facts.items())
        kinds = [_ELEMENTS.get(one.verdict) for one in gates]
        counts = {"tests": len(gates), "failures": kinds.count("failure"), "errors": kinds.count("error"), "time": 0}
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
        parts = [element("properties", properties), *cases, element("system-out", ""), element("system-err", "")]
        suites.append(
            element("testsuite", "\n".join(["", *parts, ""]), package="tokenloss", id=number, name=name or "tokenloss",
                    timestamp=now, hostname="localhost", **counts)
        )  # fmt: skip
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + element("testsuites", "\n".join(["", *suites, ""]))


def card(results: Mapping[str, Any]) -> str:
    """A Markdown table of the main metrics, and their `model-index` in YAML below it."""
    rows, models = list[tuple[str, ...]](), []
    for name, result in results.items():
        facts = facts_of(result)
        data = facts.get("base") or facts.get("trainer") or title(facts["files"])
        metrics = [*_metrics(result)]
        for one in metrics:
            low, high = one["args"]["interval"]
            numbers = f"{one['value']:.6g}", f"{one['args']['stderr']:.3g}", f"{low:.5g} to {high:.5g}"
            is_known = not math.isnan(low)
            unit, better = one["args"]["unit"], one["args"].get("direction", "")
            rows.append((name, one["name"], numbers[0], *(numbers[1:] if is_known else ("", "")), unit, better))
        result_of = {"task": {"type": "text-generation"}, "dataset": {"type": data, "name": data}, "metrics": metrics}
        models.append({"name": name, "results": [result_of]})
    heads = "model", "metric", "value", "±", "95 % interval", "unit", "note"
    text = as_markdown(Shown("Results", "", [Table(rows, heads)]))
    return "\n".join([text, "", "```yaml", *_yaml({"model-index": as_strict_json(models)}), "```"])


def _metrics(result: Any) -> Iterator[dict[str, Any]]:
    """The metrics of a result for a card; metrics of samples have no direction, since any metric may be logged."""
    for field, words in _METRICS.items():
        value, sketch = getattr(result, field, None), getattr(result, "sketch", None)
        is_bound = field == "mean_kl" and sketch is not None and not sketch["tail"]
        kind, name, unit, direction = _METRICS["mean_kl_bound"] if is_bound else words
        if isinstance(value, Estimate) and math.isfinite(value):
            args = {"unit": unit, "direction": direction, "n": result.count, "n_sequences": result.n_sequences}
            yield _metric(kind, name, float(value), value, args, result.signature)
    for one in getattr(result, "metrics", ()):
        if math.isfinite(one.other):
            args = {"unit": "mean over samples", "n": one.count, "base": float(one.base)}
            args |= {"difference": float(one.difference), "difference_stderr": one.difference.stderr}
            yield _metric(one.name, one.name, float(one.other), one.other, args, result.signature)


def _metric(kind: str, name: str, value: float, errors: Estimate, args: dict[str, Any], signature: str) -> Any:
    """An entry of `metrics`."""
    errors_of = {"errors_by": errors.unit, "stderr": errors.stderr, "interval": [*errors.interval]}
    return {"type": kind, "name": name, "value": value, "args": args | errors_of | {"signature": signature}}


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of YAML; texts are quoted as in JSON, and numbers have a point, without which 1e-05 is text to PyYAML."""
    items = value.items() if isinstance(value, dict) else ((None, one) for one in value)
    for key, one in items:
        head = f"{indent}- " if key is None else f"{indent}{key}: "
        if isinstance(one, dict) or (isinstance(one, list) and any(isinstance(part, dict) for part in one)):
            lines = [*_yaml(one, indent + "  ")]
            if key is None:
                lines[0] = head + lines[0].lstrip()
            else:
                yield head.rstrip()
            yield from lines
        else:
            yield head + _scalar(one)


def _scalar(value: Any) -> str:
    """A value, or a list of them, in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    text = json.dumps(printable(value) if isinstance(value, str) else value, ensure_ascii=False)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text)
