"""Prints what was measured of short rows as Markdown tables; with --write, puts them into benchmarks/README.md.

Times of others are multiples of tokenloss's, of each library the fastest way that was measured.

    python benchmarks/tables.py                # of benchmarks/results/short_rows.json, and a table for ../README.md
    python benchmarks/tables.py --write
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import geometric_mean
from typing import Any

RESULTS = Path(__file__).with_name("results") / "short_rows.json"
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- written by benchmarks/tables.py -->\n", "<!-- until here -->\n"

OTHERS = {"torch": "torch", "NumPy": "NumPy", "SciPy": "SciPy", "scikit-learn": "scikit-learn"}
TUTORIAL = {"the tutorial's": "the tutorial's"}
PEERS = (*OTHERS, *TUTORIAL)
FEW = ("2", "10", "100", "1000")  # numbers of classes
WORKS = {  # beginnings of the names of cases
    "short/float32": "`cross_entropy`",
    "short/float16": "the same, float16",
    "short/bfloat16": "the same, bfloat16",
    "short/float64": "the same, float64",
    "short_softmax": "`softmax` into `out`",
    "short_log_softmax": "`log_softmax` into `out`",
    "short_grad": "`cross_entropy_and_grad` into `out`",
    "short_ids": "`cross_entropy_loss`, class ids",
    "short_onehot/float32": "`cross_entropy_loss`, one-hot",
    "short_onehot/float64": "the same, float64",
    "short_soft/float32": "`cross_entropy_loss`, soft targets",
    "short_soft/float64": "the same, float64",
}
WORKS_OF_README = ("short/float32", "short_softmax", "short_ids", "short_onehot/float32")
TINY = {
    "onehot": "`cross_entropy_loss`, one-hot",
    "ids": "`cross_entropy_loss`, class ids",
    "cross_entropy": "`cross_entropy`",
    "logsumexp": "`logsumexp`",
}

Cases = dict[str, dict[str, Any]]


def main() -> None:
    """Print, or write."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md, where the old ones are")
    options = parser.parse_args()
    report = json.loads(options.results.read_text("utf-8"))
    text = section(report)
    if options.write:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2], "utf-8")
    print(text)
    print("For README.md, the fastest other way as a multiple of tokenloss's time:\n")
    print(table_of_readme(report))


def section(report: dict[str, Any]) -> str:
    """All tables, each below a line that says what it shows."""
    cases = {case["name"]: case for case in report["cases"]}
    machine, settings = report["machine"], report["settings"]
    measured = f"{machine['cpu']}, {machine['instruction_set']}; medians of {settings['rounds']} rounds or more."
    if settings["quick"]:
        measured += " **A quick run over small arrays, to show the form: no figures to rely on.**"
    short = {name.rpartition("/")[2]: case for name, case in cases.items() if name.startswith("short/float32/")}
    planes = {name.rpartition("/")[2]: case for name, case in cases.items() if name.startswith("channel_first/")}
    probabilities = {_of_ids(case): case for name, case in cases.items() if name.startswith(("log_loss/", "gather/1"))}
    tiny = {_of_tiny(name): case for name, case in cases.items() if name.startswith("tiny/")}
    sums = {f"`{case['title'].partition(',')[0]}`": case for name, case in cases.items() if name.startswith("sums/")}
    return "\n".join(
        [
            f"{measured}\n",
            "`cross_entropy` of float32 rows:\n",
            _table("classes", short, {**OTHERS, **TUTORIAL}),
            f"The geometric mean of the fastest other's times is {_mean(short)}.\n",
            "Other work, float32 unless a dtype is named: nanoseconds a row; the fastest other way as a multiple:\n",
            pivot(cases, WORKS, with_times=True),
            "Images, channels first, `cross_entropy(x, t, axis=1)`; a row is a pixel:\n",
            _table("channels", planes, OTHERS),
            "Class ids from probabilities that are in no cache:\n",
            _table("work", probabilities, OTHERS),
            "One tiny call, float64:\n",
            _table("work", tiny, {**OTHERS, **TUTORIAL}),
            "Exact sums of losses and of their squares; NumPy's are rounded:\n",
            _table("work", sums, {"math.fsum": "`math.fsum`", "NumPy, sum, and": "`np.sum`, `np.vdot`"}),
            _slower(cases),
        ]
    )


def table_of_readme(report: dict[str, Any]) -> str:
    """The fastest other way to some work of short rows."""
    cases = {case["name"]: case for case in report["cases"]}
    return pivot(cases, {name: WORKS[name] for name in WORKS_OF_README}, with_times=False)


def pivot(cases: Cases, works: dict[str, str], *, with_times: bool) -> str:
    """A row for each work and a column for each number of classes, with the fastest other way and its library."""
    rows = [["work", *(f"{v} classes" for v in FEW)]]
    for begins, text in works.items():
        found = [cases.get(f"{begins}/{v}") for v in FEW]
        if any(found):
            rows.append([text, *(_fastest_other(case, with_times) if case else "" for case in found)])
    return _markdown(rows)


def fastest(case: dict[str, Any], begins: str | tuple[str, ...]) -> dict[str, Any] | None:
    """The contender of the least time among those whose names begin so and whose result is right."""
    chosen = [c for c in case["contenders"] if c["name"].startswith(begins) and c["agrees"]]
    return min(chosen, key=lambda contender: contender["times_tokenloss"], default=None)


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """Tokenloss with the instruction set that it chooses."""
    return next(contender for contender in case["contenders"] if contender["name"] == "tokenloss")


def _fastest_other(case: dict[str, Any], with_times: bool) -> str:
    """The time of the fastest peer, as a multiple of tokenloss's."""
    peer = fastest(case, PEERS)
    other = f"{_digits(peer['times_tokenloss'])} {peer['name'].partition(',')[0]}" if peer else "-"
    return f"{_digits(ours(case)['ns_per_row'])}; {other}" if with_times else other


def _table(head: str, cases: Cases, columns: dict[str, str]) -> str:
    """A row for each case: tokenloss's time, and the others' as multiples; libraries that do not occur are left out."""
    columns = {begins: text for begins, text in columns.items() if any(fastest(c, begins) for c in cases.values())}
    rows = [[head, "tokenloss", *columns.values()]]
    for label, case in cases.items():
        peers = [fastest(case, begins) for begins in columns]
        rows.append([label, _time(case), *(_digits(peer["times_tokenloss"]) if peer else "" for peer in peers)])
    return _markdown(rows)


def _time(case: dict[str, Any]) -> str:
    """Tokenloss's time: of a row, or where rows are not counted of the call."""
    own = ours(case)
    return f"{_digits(own['ns_per_row'])} ns" if own["ns_per_row"] else f"{_digits(own['median'] * 1e6)} µs"


def _mean(cases: Cases) -> str:
    """The geometric mean of the fastest peers' times as multiples of tokenloss's."""
    peers = [fastest(case, PEERS) for case in cases.values()]
    return _digits(geometric_mean([peer["times_tokenloss"] for peer in peers if peer] or [math.nan]))


def _slower(cases: Cases) -> str:
    """The cases in which a peer is faster than tokenloss."""
    peers = {name: fastest(case, PEERS) for name, case in cases.items() if not name.startswith("sums/")}
    slower = [(name, peer) for name, peer in peers.items() if peer and peer["times_tokenloss"] < 1]
    named = [f"{name} ({_digits(peer['times_tokenloss'])} {peer['name']})" for name, peer in slower]
    return f"Cases in which another way is faster: {'; '.join(named) or 'none'}.\n"


def _of_ids(case: dict[str, Any]) -> str:
    """Dtype and shape, as the title has them."""
    return str(case["title"].partition("class ids, ")[2].partition(", cold")[0])


def _of_tiny(name: str) -> str:
    """Work and shape of a tiny call."""
    _, work, shape = name.split("/")
    return f"{TINY[work]}, ({', '.join(shape.split('x'))}{',' * ('x' not in shape)})"


def _digits(number: float) -> str:
    """Two digits that matter, or all of an integer."""
    return f"{number:.0f}" if number >= 10 else f"{number:.{1 if number >= 1 else 2}f}"


def _markdown(rows: list[list[str]]) -> str:
    """A table with its head first."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
