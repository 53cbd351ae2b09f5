"""Writes all tables and charts of benchmarks/README.md, and the table of speeds of README.md, from results/*.json.

Times of others are multiples of tokenloss's, of each library the fastest way that was measured.

    python benchmarks/report.py            # run.py --write does the same after measuring
    python benchmarks/report.py FILE       # prints the tables of one file
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import chart

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- written by benchmarks/report.py -->\n", "<!-- until here -->\n"

LINES = ("torch", "NumPy", "SciPy", "scikit-learn", "JAX", "onnxruntime")  # of the chart
PEERS = {name: name for name in (*LINES, "the tutorial's")}
AVX2 = "tokenloss, avx2"
WORKS = {  # of short rows, by the beginnings of the names of their cases
    "short/float32": "`cross_entropy`",
    "short/float16": "the same, float16",
    "short/bfloat16": "the same, bfloat16",
    "short/float64": "the same, float64",
    "short_softmax": "`softmax` into `out`",
    "short_log_softmax": "`log_softmax` into `out`",
    "short_cross_entropy_and_grad": "`cross_entropy_and_grad` into `out`",
    "short_ids/float32": "`cross_entropy_loss`, class ids",
    "short_onehot/float32": "`cross_entropy_loss`, one-hot",
    "short_onehot/float64": "the same, float64",
    "short_soft/float32": "`cross_entropy_loss`, soft targets",
    "short_soft/float64": "the same, float64",
}
WORKS_OF_README = ("short/float32", "short_softmax", "short_ids/float32", "short_onehot/float32", "short_soft/float32")
TINY = {
    "onehot": "`cross_entropy_loss`, one-hot",
    "ids": "`cross_entropy_loss`, class ids",
    "cross_entropy": "`cross_entropy`",
    "logsumexp": "`logsumexp`",
}

Contender = dict[str, Any]
Cases = dict[str, dict[str, Any]]


def main() -> None:
    """Print the tables of a file, or write the pages."""
    if len(sys.argv) > 1:
        print(section(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
    else:
        write()


def text_of(report: dict[str, Any]) -> str:
    """A report as JSON, with a line for each case and four digits of each figure."""
    report = json.loads(json.dumps(report), parse_float=lambda figure: float(f"{float(figure):.4g}"))
    cases = ",\n".join(map(json.dumps, report.pop("cases")))
    return f'{json.dumps(report)[:-1]}, "cases": [\n{cases}\n]}}\n'


def save(report: dict[str, Any]) -> None:
    """Keep what was measured by the name of its processor."""
    RESULTS.mkdir(exist_ok=True)
    _file(report, "json").write_text(text_of(report), "utf-8")


def write() -> None:
    """Put everything where it belongs."""
    for path, text in texts().items():
        path.write_text(text, "utf-8")


def texts() -> dict[Path, str]:
    """The text of each file that shows the results."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    blocks = {HERE / "README.md": "\n".join(map(section, reports)), HERE.parent / "README.md": of_readme(reports)}
    found = {_file(report, "svg"): _chart(report) for report in reports}
    for page, block in blocks.items():
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        found[page] = before + BEGIN + block + END + rest.partition(END)[2]
    return found


def section(report: dict[str, Any]) -> str:
    """All tables of a processor, each below a line that says what it shows."""
    cases = {case["name"]: case for case in report["cases"]}
    with_avx2 = {AVX2: "with AVX2", **PEERS}
    cold = {_after_comma(case): case for case in _named(cases, "cold/").values()}
    tiny = {_tiny(name): case for name, case in _named(cases, "tiny/").items()}
    sums = {f"`{case['title'].partition(',')[0]}`": case for case in _named(cases, "sums/").values()}
    large = {_work(name): case for name, case in cases.items() if re.match("large/.+/float32/1", name)}
    chart = f"![Times of other libraries over the number of classes](results/{_file(report, 'svg').name})\n"
    parts = {
        "`cross_entropy` of float32 rows:": f"{chart}\n{_table('classes', _short(report), with_avx2)}",
        "Other work, float32 unless a dtype is named: nanoseconds a row; the fastest other way:": _pivot(cases),
        "Images, channels first, `cross_entropy(x, t, axis=1)`; a row is a pixel:": _table(
            "channels", _named(cases, "planes/"), with_avx2
        ),
        "`cross_entropy_loss` of probabilities that are in no cache:": _table("targets", cold, PEERS),
        "One tiny call, float64:": _table("work", tiny, PEERS),
        "Exact sums of losses, in a meter also of their squares; NumPy's are rounded:": _table(
            "work", sums, {"math.fsum": "`math.fsum`", "NumPy, sum": "NumPy"}
        ),
        "131072 classes: speed relative to `read`; where an array is written, time relative to a copy:": _shares(cases),
        "Float32 of them, on one thread:": _table("work", large, PEERS),
        "`linear_cross_entropy` on two threads, and the memory that a call adds:": _projections(cases),
        "The largest errors in nats:": _errors(report["accuracy"]),
    }
    tables = "\n".join(f"{line}\n\n{table}" for line, table in parts.items() if table)
    return f"{_head(report)}\n{tables}\n{_summary(cases, _short(report))}"


def of_readme(reports: list[dict[str, Any]]) -> str:
    """The fastest other way to some work of short rows: where it comes closest, if there are several processors."""
    classes = ("2", "10", "100", "1000")
    rows = [["work", *(f"{v} classes" for v in classes)]]
    for begins in WORKS_OF_README:
        names = [f"{begins}/{v}" for v in classes]
        peers = [[_peer(c) for report in reports for c in report["cases"] if c["name"] == name] for name in names]
        closest = [min(filter(None, found), key=_ratio, default=None) for found in peers]
        rows.append([WORKS[begins], *map(_other, closest)])
    processors = "; ".join(map(_processor, reports))
    return f"\n{_markdown(rows)}\nFloat32, one thread, {processors}; below 1 the other is faster. "


def _head(report: dict[str, Any]) -> str:
    """The machine, the number of rounds and the versions, as text."""
    machine = report["machine"]
    facts = f"{machine['cpus']} CPUs, {machine['instruction_set']}, last-level cache {machine['last_level_cache']}"
    rounds = f"{report['rounds']} rounds or more"
    others = median(case["others_cpus"] for case in report["cases"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    quick = "**A quick run over small arrays, to show the form: no figures to rely on.**\n" if report["quick"] else ""
    return f"## {_processor(report)}\n\n{facts}; {rounds}; other processes had {others:.1f} CPUs.\n{versions}.\n{quick}"


def _summary(cases: Cases, short: Cases) -> str:
    """The mean over rows of all lengths, and the cases in which a peer is faster than tokenloss."""
    mean = geometric_mean([_ratio(peer) for peer in map(_peer, short.values()) if peer] or [1.0])
    peers = {name: _peer(case) for name, case in cases.items() if not name.startswith("sums/")}
    slower = {name: peer for name, peer in peers.items() if peer and _ratio(peer) < 1}
    named = "; ".join(f"{name} ({_digits(_ratio(peer))} {peer['name']})" for name, peer in slower.items())
    return (
        f"The geometric mean of the fastest other's times for float32 rows is {_digits(mean)}. Another way is faster in"
        f" {len(slower)} of {len(peers)} cases: {named or 'none'}.\n"
    )


def _chart(report: dict[str, Any]) -> str:
    """The curves over the number of classes, of libraries alone."""
    lines: dict[str, dict[int, float]] = {}
    for name in LINES:
        peers = {int(v): fastest(case, [name]) for v, case in _short(report).items()}
        if any(peers.values()):
            lines[name] = {v: _ratio(peer) for v, peer in peers.items() if peer}
    title = "Time of cross_entropy of float32 rows, as a multiple of tokenloss's"
    return chart.svg(lines, title, f"number of classes; {_processor(report)}, one thread")


def _pivot(cases: Cases) -> str:
    """A row for each work and a column for each number of classes, with the fastest other way and its library."""
    found = {begins: _named(cases, f"{begins}/") for begins in WORKS}
    columns = sorted({v for begins, of_work in found.items() if begins != "short/float32" for v in of_work}, key=int)
    rows = [["work", *(f"{v} classes" for v in columns)]]
    for begins, of_work in found.items():
        of_columns = map(of_work.get, columns)
        cells = [f"{_digits(_ns(case))}; {_other(_peer(case))}" if case else "" for case in of_columns]
        rows.append([WORKS[begins], *cells])
    return _markdown(rows)


def _table(head: str, cases: Cases, columns: dict[str, str]) -> str:
    """A row for each case: tokenloss's time, and the others' as multiples."""
    rows = [[head, "tokenloss", *columns.values()]]
    for label, case in cases.items():
        peers = [fastest(case, [begins]) for begins in columns]
        rows.append([label, _time(case), *(_digits(_ratio(peer)) if peer else "" for peer in peers)])
    return _markdown(rows)


def _shares(cases: Cases) -> str:
    """Speed relative to reading, or time relative to a copy, by threads and instruction set."""
    columns = [(name, threads) for name in ("tokenloss", AVX2) for threads in (1, 2)]
    heads = [f"{'AVX2, ' if name == AVX2 else ''}{n} thread{'s' * (n > 1)}" for name, n in columns]
    rows = [["work", "dtype", "GB/s", *heads]]
    for label in dict.fromkeys(name.rpartition("/")[0] for name in cases if name.startswith("large/")):
        first = cases[f"{label}/1"]
        found = [_contender(cases.get(f"{label}/{n}"), name) for name, n in columns]
        speed = _digits(first["bytes"] / ours(first)["time"] / 1e9)
        rows.append([_work(label), label.rpartition("/")[2], speed, *map(_share, found)])
    return _markdown(rows)


def _projections(cases: Cases) -> str:
    """Time and memory of projections, compared with the matrix product alone and with torch."""
    rows = [
        ["hidden states, classes", "tokenloss", "of read", "MB", "the product alone, same BLAS", "MB", "torch", "MB"]
    ]
    for case in _named(cases, "linear/").values():
        of_read = f"{ours(case)['of_read']:.2f}" if case["bytes"] else ""
        rows.append([_after_comma(case), _time(case), of_read, _mb(ours(case))])
        for peer in (_contender(case, "product"), fastest(case, ["torch"])):
            rows[-1] += [_digits(_ratio(peer)), _mb(peer)] if peer else ["", ""]
    return _markdown(rows)


def _errors(measured: list[dict[str, Any]]) -> str:
    """The largest over all kinds of rows."""
    names = list(dict.fromkeys(name for row in measured for name in row["errors"]))
    rows = [["dtype", *names]]
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        errors = [row["errors"] for row in measured if row["dtype"] == dtype]
        largest = [max((each[name] for each in errors if name in each), default=None) for name in names]
        rows.append([dtype, *("" if error is None else f"{error:.2g}" for error in largest)])
    return _markdown(rows)


def fastest(case: dict[str, Any], begins: Iterable[str]) -> Contender | None:
    """The contender of the least time among those whose names begin so and whose result is right."""
    chosen = [c for c in case["contenders"] if c["name"].startswith(tuple(begins)) and c["agrees"]]
    return min(chosen, key=_ratio, default=None)


def ours(case: dict[str, Any]) -> Contender:
    """Tokenloss with the instruction set that it chooses."""
    found = _contender(case, "tokenloss")
    assert found
    return found


def _peer(case: dict[str, Any]) -> Contender | None:
    """The fastest other way."""
    return fastest(case, PEERS)


def _contender(case: dict[str, Any] | None, name: str) -> Contender | None:
    """The one of this name, if it is there."""
    return next((c for c in case["contenders"] if c["name"] == name), None) if case else None


def _ratio(contender: Contender) -> float:
    """The time as a multiple of tokenloss's."""
    return float(contender["times_tokenloss"])


def _other(peer: Contender | None) -> str:
    """The time of a peer and its library."""
    return f"{_digits(_ratio(peer))} {peer['name'].partition(',')[0]}" if peer else ""


def _share(contender: Contender | None) -> str:
    """The speed of a contender relative to reading, or its time relative to a copy."""
    if not contender:
        return ""
    return f"{1 / contender['of_copy']:.2f} x copy" if "of_copy" in contender else f"{contender['of_read']:.2f}"


def _named(cases: Cases, begins: str) -> Cases:
    """The cases whose names begin so, by what follows."""
    return {name.removeprefix(begins): case for name, case in cases.items() if name.startswith(begins)}


def _short(report: dict[str, Any]) -> Cases:
    """Float32 rows by their numbers of classes."""
    return _named({case["name"]: case for case in report["cases"]}, "short/float32/")


def _processor(report: dict[str, Any]) -> str:
    """The processor's name."""
    return str(report["machine"]["processor"])


def _file(report: dict[str, Any], suffix: str) -> Path:
    """The path of the results that were measured on this processor."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', _processor(report).lower()).strip('-')}.{suffix}"


def _work(name: str) -> str:
    """The function of a case of many classes, and what it is asked for."""
    work = name.split("/")[1]
    return "`token_scores`, `top_k=20`" if work == "top_k" else f"`{work}`"


def _after_comma(case: dict[str, Any]) -> str:
    """The title of a case without the name of the function."""
    return str(case["title"].partition(", ")[2])


def _tiny(name: str) -> str:
    """Work and shape of a tiny call."""
    work, shape = name.split("/")
    return f"{TINY[work]}, ({', '.join(shape.split('x'))}{',' * ('x' not in shape)})"


def _ns(case: dict[str, Any]) -> float:
    """Nanoseconds a row."""
    return float(ours(case)["time"] / case["rows"] * 1e9)


def _time(case: dict[str, Any]) -> str:
    """Tokenloss's time: of a row, or where rows are not counted of the call."""
    if case["rows"]:
        return f"{_digits(_ns(case))} ns"
    time = ours(case)["time"]
    return f"{_digits(time * 1e6)} µs" if time < 1e-3 else f"{_digits(time * 1e3)} ms"


def _mb(contender: Contender) -> str:
    """Megabytes that a call adds."""
    return "" if contender["extra_bytes"] is None else f"{contender['extra_bytes'] / 1e6:.0f}"


def _digits(number: float) -> str:
    """Two digits that matter, or all of an integer."""
    return f"{number:.0f}" if number >= 10 else f"{number:.{1 if number >= 1 else 2}f}"


def _markdown(rows: list[list[str]]) -> str:
    """A table with its head first, without the columns in which no cell is filled; no table where there are no rows."""
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    lines = [f"| {' | '.join(row[i] for i in filled)} |" for row in rows]
    lines.insert(1, "|---" * len(filled) + "|")
    return "\n".join(lines) + "\n" if filled else ""


if __name__ == "__main__":
    main()
