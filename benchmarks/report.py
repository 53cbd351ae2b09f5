"""Writes all tables and charts of benchmarks/README.md, and the chart of README.md, from results/*.json.

For each library, the fastest of the measured ways counts.

    python benchmarks/report.py            # run.py --write does the same after measuring
    python benchmarks/report.py FILE       # prints the tables of one file
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- written by benchmarks/report.py -->\n", "<!-- until here -->\n"

LIBRARIES = ("torch", "NumPy", "SciPy", "scikit-learn", "JAX", "onnxruntime")
PEERS = {name: name for name in (*LIBRARIES, "the tutorial's")}
CURVE = "short/float32/"  # the rows of the chart of lines, by their number of classes
SHOWN = ("large/cross_entropy/float32/1", "short/float32/10")  # in README
AVX2 = "tokenloss, avx2"
OURS_AND_PEERS = {"tokenloss": "tokenloss", **PEERS}
WITH_AVX2 = {"tokenloss": "tokenloss", AVX2: "with AVX2", **PEERS}
WORKS = {  # by the beginnings of the names of their cases; what follows is the number of classes
    CURVE: "`cross_entropy`",
    "short/float16/": "`cross_entropy`, float16",
    "short/bfloat16/": "`cross_entropy`, bfloat16",
    "short/float64/": "`cross_entropy`, float64",
    "short_softmax/": "`softmax` into `out`",
    "short_log_softmax/": "`log_softmax` into `out`",
    "short_cross_entropy_and_grad/": "`cross_entropy_and_grad` into `out`",
    "short_ids/float32/": "`cross_entropy_loss`, class ids",
    "short_onehot/float32/": "`cross_entropy_loss`, one-hot",
    "short_onehot/float64/": "`cross_entropy_loss`, one-hot, float64",
    "short_soft/float32/": "`cross_entropy_loss`, soft targets",
    "short_soft/float64/": "`cross_entropy_loss`, soft targets, float64",
}
OTHER_WORKS = {
    "planes/": "`cross_entropy(x, t, axis=1)`, images",
    "options/": "`cross_entropy`, 10 classes, with",
    "cold/ids/": "`cross_entropy_loss`, class ids, beyond the caches, threads",
    "cold/onehot/": "`cross_entropy_loss`, one-hot, beyond the caches, threads",
    "cold/": "`cross_entropy_loss`, class ids, beyond the caches",
    "tiny/onehot/": "`cross_entropy_loss`, one-hot, one tiny call",
    "tiny/ids/": "`cross_entropy_loss`, class ids, one tiny call",
    "tiny/cross_entropy/": "`cross_entropy`, one tiny call",
    "tiny/logsumexp/": "`logsumexp`, one tiny call",
    "others/logsumexp/": "`logsumexp`",
    "others/softmax/": "`softmax`",
    "others/nll_loss/": "`nll_loss`",
    "others/cross_entropy_loss/": "`cross_entropy_loss`, class ids",
    "others/soft-cross_entropy_loss/": "`cross_entropy_loss`, distributions",
    "others/soft-cross_entropy/": "`cross_entropy`, distributions",
    "others/soft-cross_entropy_and_grad/": "`cross_entropy_and_grad`, distributions",
    "others/smoothed-cross_entropy/": "`cross_entropy`, label_smoothing",
    "others/weighted-cross_entropy/": "`cross_entropy`, distributions, weight",
    "others/weighted-cross_entropy_and_grad/": "`cross_entropy_and_grad`, weight, label_smoothing",
    "others/kl_divergence/": "`kl_divergence`",
    "large/": "131072 classes",
    "divergences/": "`kl_divergence`, all five divergences",
    "linear/": "`linear_cross_entropy`",
}
LABELS = {**WORKS, **OTHER_WORKS}

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
    _file(report, ".json").write_text(text_of(report), "utf-8")


def write() -> None:
    """Put everything where it belongs."""
    for path, text in texts().items():
        path.write_text(text, "utf-8")


def texts() -> dict[Path, str]:
    """The text of each file that shows the results."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    result = {_file(report, ".svg"): _lines(report) for report in reports}
    result |= {_file(report, "-readme.svg"): _bars(report) for report in reports}
    closest = min(reports, key=lambda report: _ratio(_others(_cases(report)[SHOWN[0]])[0]))
    blocks = {
        HERE / "README.md": "\n".join(map(section, reports)),
        HERE.parent / "README.md": of_readme(closest, reports),
    }
    for page, block in blocks.items():
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        result[page] = before + BEGIN + block + END + rest.partition(END)[2]
    return result


def of_readme(report: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """The chart of bars of a report, and a sentence, which counts cases where others are most often faster."""
    cases = _cases(report)
    compared, slower = max((_compared(_cases(each)) for each in reports), key=lambda pair: len(pair[1]))
    (many, few), (of_many, of_few) = zip(
        *((_classes(cases[name]), _others(cases[name])[0]) for name in SHOWN), strict=True
    )
    picture = f"benchmarks/results/{_file(report, '-readme.svg').name}"
    sentence = (
        f"One thread, {_processor(report)}: the fastest other library takes {_digits(_ratio(of_many))} times as long"
        f" with {many} classes ({_library(of_many)}) and {_digits(_ratio(of_few))} times with {few}"
        f" ({_library(of_few)})."
        f" Others are faster in {len(slower)} of {len(compared)} [measured cases](benchmarks/README.md)."
    )
    described = f"Time of cross_entropy in other libraries, at {many} and {few} classes"
    return f"![{described}]({picture})\n\n{sentence} "


def section(report: dict[str, Any]) -> str:
    """All tables of a processor, below headings and what they show."""
    cases = _cases(report)
    images, tiny = _named(cases, "planes/"), {_tiny(name): case for name, case in _named(cases, "tiny/").items()}
    options = {"none": cases["short/float32/10"], **_named(cases, "options/")} if _named(cases, "options/") else {}
    cold = {_after_comma(case): case for case in _named(cases, "cold/").values()}
    sums = {f"`{case['title'].partition(',')[0]}`": case for case in _named(cases, "sums/").values()}
    parts = {
        "Where others are faster": _of_slower(cases),
        "Short rows: `cross_entropy`, float32": _of_short_rows(report),
        "Short rows: other work": _of_works(cases),
        "Images": [
            "Nanoseconds per pixel for `cross_entropy(x, t, axis=1)`, where the channels of `x` come first:",
            _table("channels", images, WITH_AVX2, _ns),
        ],
        "Options": [
            "Nanoseconds per row of 10 classes for `cross_entropy`, float32, with an option:",
            _table("option", {f"`{name}`": case for name, case in options.items()}, WITH_AVX2, _ns),
        ],
        "Other functions and layouts": [
            "The time of the fastest alternative, as a multiple of tokenloss's; classes are the second axis:",
            _of_shapes(_named(cases, "others/")),
        ],
        "Probabilities beyond the caches": [
            "Milliseconds per call of `cross_entropy_loss`:",
            _table("targets", cold, OURS_AND_PEERS, _ms),
        ],
        "One tiny call": ["Microseconds per call, float64:", _table("work", tiny, OURS_AND_PEERS, _us)],
        "Exact sums": [
            "Nanoseconds per added loss. The meter also adds its square, and NumPy's sums are rounded:",
            _table("work", sums, {"tokenloss": "tokenloss", "math.fsum": "`math.fsum`", "NumPy, sum": "NumPy"}, _ns),
        ],
        "Rows of 131072 classes": _of_large_rows(cases),
        "Hidden states, without their logits": _of_projections(cases),
        "The largest errors": ["Nats, by the dtype of the logits:", _errors(report["accuracy"])],
    }
    shown = ["\n\n".join([f"### {heading}", *map(str.strip, part)]) for heading, part in parts.items() if all(part)]
    return "\n\n".join([_head(report), *shown]) + "\n"


def _head(report: dict[str, Any]) -> str:
    """The machine, the number of rounds and the versions, as text."""
    machine = report["machine"]
    others = median(case["others_cpus"] for case in report["cases"])
    facts = (
        f"Measured on {machine['cpus']} CPUs with {machine['instruction_set'].upper()} and a last-level cache of"
        f" {machine['last_level_cache'].removesuffix('K')} kB, in {report['rounds']} rounds or more, while other"
        f" processes used {others:.1f} CPUs."
    )
    versions = f"Versions: {', '.join(' '.join(each) for each in machine['versions'].items())}."
    quick = (
        "**A quick run on small arrays, to show the layout: do not rely on these numbers.**\n\n"
        if report["quick"]
        else ""
    )
    return f"## {_processor(report)}\n\n{quick}{_wrapped(facts)}\n{_wrapped(versions)}".strip()


def _of_short_rows(report: dict[str, Any]) -> list[str]:
    """Float32 rows by their number of classes: the chart, and each library's time."""
    cases = _named(_cases(report), CURVE)
    return [
        f"![Times of other libraries over the number of classes](results/{_file(report, '.svg').name})",
        "Nanoseconds per row:",
        _table("classes", cases, WITH_AVX2, _ns),
    ]


def _of_works(cases: Cases) -> list[str]:
    """Tables that have a row for each work and a column for each number of classes."""
    return [
        "Float32 unless another dtype is named. Nanoseconds per row for tokenloss:",
        _pivot(cases, lambda case: _ns(case, ours(case))),
        "The time of the fastest alternative, as a multiple of tokenloss's:",
        _pivot(cases, lambda case: _digits(_ratio(_others(case)[0]))),
        "The library of that alternative:",
        _pivot(cases, lambda case: _library(_others(case)[0])),
    ]


def _of_shapes(cases: Cases) -> str:
    """A row for each function, and a column for each dtype and shape."""
    works = dict.fromkeys(name.partition("/")[0] for name in cases)
    columns = dict.fromkeys(name.partition("/")[2] for name in cases)
    rows = [["function", *(column.replace("/", " ").replace("x", " x ") for column in columns)]]
    for work in works:
        names = [f"{work}/{column}" for column in columns]
        others = [_others(cases[name])[:1] if name in cases else [] for name in names]
        rows.append([LABELS[f"others/{work}/"], *(_digits(_ratio(peer[0])) if peer else "" for peer in others)])
    return _markdown(rows)


def _of_large_rows(cases: Cases) -> list[str]:
    """Times, speed relative to reading, and time relative to a copy, by threads and instruction set."""
    times = {_work(name): case for name, case in cases.items() if re.match("large/.+/float32/1", name)}
    parts = ["Milliseconds per call, float32, one thread:", _table("work", times, WITH_AVX2, _ms)]
    speeds = [_reading(case) for n in (1, 2) if (case := cases.get(f"large/cross_entropy/float32/{n}"))]
    said = f" (float32: {' and '.join(speeds)})" if speeds else ""
    relative = {
        "of_read": f"Speed as a fraction of the speed of `read`{said}:",
        "of_copy": "For functions that write an array, the time as a multiple of a copy's:",
    }
    for unit, text in relative.items():
        if table := _relative(cases, unit):
            parts += [_wrapped(text), table]
    return parts if times else []


def _of_projections(cases: Cases) -> list[str]:
    """Time and memory of projections, compared with the matrix product alone and with torch."""
    result = {_after_comma(case): case for case in _named(cases, "linear/").values()}
    columns = {"tokenloss": "tokenloss", "product": "only the product, same BLAS", "torch": "torch"}
    parts = [
        "Milliseconds per call of `linear_cross_entropy`, two threads:",
        _table("hidden states, weights", result, columns, _ms),
        "Megabytes allocated per call:",
        _table("hidden states, weights", result, columns, _mb),
    ]
    read = [f"{ours(case)['of_read']:.2f} ({label})" for label, case in result.items() if case["bytes"]]
    return [*parts, _wrapped(f"Speed as a fraction of the speed of `read`: {', '.join(read)}.")] if read else parts


def _of_slower(cases: Cases) -> list[str]:
    """The mean over rows of all lengths, and the cases in which a peer is faster than tokenloss."""
    ratios = [_ratio(peer) for case in _named(cases, CURVE).values() for peer in _others(case)[:1]]
    compared, slower = _compared(cases)
    mean = (
        f"For float32 rows of {len(ratios)} lengths, the fastest alternative takes"
        f" {_digits(geometric_mean(ratios or [1.0]))} times as long as tokenloss (geometric mean)."
    )
    counted = f"In {len(slower)} of {len(compared)} cases, an alternative is faster{':' if slower else '.'}"
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for case, peer in slower.items():
        begins = next(each for each in LABELS if case.startswith(each))
        groups.setdefault((LABELS[begins], peer["name"]), {})[case.removeprefix(begins)] = _ratio(peer)
    rows = [["work", "number of classes, or shape", "faster alternative", "its time, as a multiple of tokenloss's"]]
    for (work, name), times in groups.items():
        sizes = ", ".join(re.sub(r"(?<=\d)x(?=\d)", " x ", size.replace("/", " ")) for size in times)
        range_of_times = dict.fromkeys(_digits(time) for time in (min(times.values()), max(times.values())))
        rows.append([work, sizes, name, " to ".join(range_of_times)])
    return [_wrapped(f"{mean} {counted}" if ratios else counted), *filter(None, [_markdown(rows)])]


def _compared(cases: Cases) -> tuple[Cases, dict[str, Contender]]:
    """The cases that others have, and of those in which another way is faster, that way; rounded sums do not count."""
    compared = {name: case for name, case in cases.items() if _others(case) and not name.startswith("sums/")}
    fastest_others = {name: _others(case)[0] for name, case in compared.items()}
    return compared, {name: peer for name, peer in fastest_others.items() if _ratio(peer) < 1}


def _lines(report: dict[str, Any]) -> str:
    """The curves over the number of classes, of libraries alone."""
    import chart  # needs matplotlib

    cases = _named(_cases(report), CURVE)
    curves = {}
    for name in LIBRARIES:
        peers = {int(classes): fastest(case, [name]) for classes, case in cases.items()}
        if any(peers.values()):
            curves[name] = {classes: _ratio(peer) for classes, peer in peers.items() if peer}
    title = "Time of cross_entropy of float32 rows, as a multiple of tokenloss's"
    return chart.lines(curves, title, f"number of classes; {_processor(report)}, one thread")


def _bars(report: dict[str, Any]) -> str:
    """Each library's time at many classes and at few."""
    import chart

    cases = _cases(report)
    groups = {}
    for name in SHOWN:
        others = [peer for peer in reversed(_others(cases[name])) if _library(peer) != "the tutorial's function"]
        groups[f"{_classes(cases[name])} classes"] = {
            **{_library(peer): _ratio(peer) for peer in others},
            "tokenloss": 1.0,
        }
    title = "Time of cross_entropy, as a multiple of tokenloss's: shorter is faster"
    return chart.bars(groups, title, f"float32 logits, one thread, {_processor(report)}; each library at its best")


def _pivot(cases: Cases, cell: Callable[[dict[str, Any]], str]) -> str:
    """A row for each work on short rows and a column for each number of classes."""
    result = {begins: of_work for begins in WORKS if (of_work := _named(cases, begins))}
    columns = sorted({v for begins, of_work in result.items() if begins != CURVE for v in of_work}, key=int)
    rows = [["work", *(f"{v} classes" for v in columns)]]
    for begins, of_work in result.items():
        rows.append([WORKS[begins], *(cell(of_work[v]) if v in of_work else "" for v in columns)])
    return _markdown(rows)


def _table(head: str, cases: Cases, columns: dict[str, str], cell: Callable[[dict[str, Any], Contender], str]) -> str:
    """A row for each case, and a column for each of the contenders whose names begin as the columns' keys."""
    rows = [[head, *columns.values()]]
    for label, case in cases.items():
        chosen = (
            _contender(case, begins) if begins in WITH_AVX2 and begins not in PEERS else fastest(case, [begins])
            for begins in columns
        )
        rows.append([label, *(cell(case, each) if each else "" for each in chosen)])
    return _markdown(rows)


def _relative(cases: Cases, unit: str) -> str:
    """Speed relative to reading, or time relative to a copy, by threads and instruction set."""
    columns = [(name, threads) for name in ("tokenloss", AVX2) for threads in (1, 2)]
    heads = [f"{'AVX2, ' if name == AVX2 else ''}{n} thread{'s' * (n > 1)}" for name, n in columns]
    rows = [["work", "dtype", *heads]]
    for label in dict.fromkeys(name.rpartition("/")[0] for name in cases if name.startswith("large/")):
        result = [_contender(cases.get(f"{label}/{n}"), name) for name, n in columns]
        shares = [each.get(unit) if each else None for each in result]
        if any(shares) and (unit == "of_copy" or "of_copy" not in ours(cases[f"{label}/1"])):
            times = [1 / share if share and unit == "of_copy" else share for share in shares]
            rows.append([_work(label), label.rpartition("/")[2], *(f"{time:.2f}" if time else "" for time in times)])
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
    result = _contender(case, "tokenloss")
    assert result
    return result


def _others(case: dict[str, Any]) -> list[Contender]:
    """The fastest way of each other library, the fastest library first."""
    result: dict[str, Contender] = {}
    for each in sorted(case["contenders"], key=_ratio):
        if each["name"].startswith(tuple(PEERS)) and each["agrees"]:
            result.setdefault(_library(each), each)
    return list(result.values())


def _contender(case: dict[str, Any] | None, name: str) -> Contender | None:
    """The one of this name, if it is there."""
    return next((c for c in case["contenders"] if c["name"] == name), None) if case else None


def _ratio(contender: Contender) -> float:
    """The time as a multiple of tokenloss's."""
    return float(contender["times_tokenloss"])


def _library(contender: Contender) -> str:
    """The library of a contender."""
    return str(contender["name"].partition(",")[0])


def _cases(report: dict[str, Any]) -> Cases:
    """The cases by their names."""
    return {case["name"]: case for case in report["cases"]}


def _named(cases: Cases, begins: str) -> Cases:
    """The cases whose names begin so, by what follows."""
    return {name.removeprefix(begins): case for name, case in cases.items() if name.startswith(begins)}


def _processor(report: dict[str, Any]) -> str:
    """The processor's name."""
    return str(report["machine"]["processor"])


def _file(report: dict[str, Any], ending: str) -> Path:
    """The path of the results that were measured on this processor."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', _processor(report).lower()).strip('-')}{ending}"


def _work(name: str) -> str:
    """The function of a case of many classes, and what it is asked for."""
    work = name.split("/")[1]
    return "`token_scores`, `top_k=20`" if work == "top_k" else f"`{work}`"


def _classes(case: dict[str, Any]) -> str:
    """The number of classes, with which the title of a case of whole rows ends, or its part before a comma."""
    result = re.search(r" x (\d+)", case["title"])
    assert result
    return result[1]


def _after_comma(case: dict[str, Any]) -> str:
    """The title of a case without the name of the function."""
    return str(case["title"].partition(", ")[2])


def _tiny(name: str) -> str:
    """Work and shape of a tiny call."""
    work, shape = name.split("/")
    label = OTHER_WORKS[f"tiny/{work}/"].removesuffix(", one tiny call")
    return f"{label}, ({', '.join(shape.split('x'))}{',' * ('x' not in shape)})"


def _ns(case: dict[str, Any], contender: Contender) -> str:
    """Nanoseconds a row."""
    return _digits(contender["time"] / case["rows"] * 1e9)


def _us(case: dict[str, Any], contender: Contender) -> str:
    """Microseconds a call."""
    return _digits(contender["time"] * 1e6)


def _ms(case: dict[str, Any], contender: Contender) -> str:
    """Milliseconds a call."""
    return _digits(contender["time"] * 1e3)


def _mb(case: dict[str, Any], contender: Contender) -> str:
    """Megabytes that a call adds."""
    return "" if contender["extra_bytes"] is None else f"{contender['extra_bytes'] / 1e6:.0f}"


def _reading(case: dict[str, Any]) -> str:
    """The speed of plain reading, and its threads."""
    read = _contender(case, "read")
    assert read
    return f"{_digits(case['bytes'] / read['time'] / 1e9)} GB/s on {_threads(case['workers'])}"


def _threads(count: int) -> str:
    """A number of threads."""
    return f"{count} thread{'s' * (count > 1)}"


def _digits(number: float) -> str:
    """Two digits that matter, or all of an integer."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.{1 if number >= 1 else 2}f}"


def _wrapped(text: str) -> str:
    """A paragraph in lines."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _markdown(rows: list[list[str]]) -> str:
    """A table with its head first, without the columns in which no cell is filled; no table where there are no rows."""
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    lines = [f"| {' | '.join(row[i] for i in filled)} |" for row in rows]
    lines.insert(1, "|---" * len(filled) + "|")
    return "\n".join(lines) + "\n" if filled else ""


if __name__ == "__main__":
    main()
