"""Times tokenloss and other libraries at the same work, in one process, round by round.

Ratios come first: a shared machine's speed drifts, and the ratio of two neighbouring runs hardly does. Timings never
fail; contenders that disagree about the result do (exit status 1), unless they overflow and are known to.

    python benchmarks/run.py                                  # everything: more than an hour and 12 GB
    python benchmarks/run.py --only short/ channel_first      # cases by the beginning of their names
    python benchmarks/run.py --json all.json --chart all.svg  # and later: --load all.json --chart all.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

# Overrides of what OpenBLAS finds out about the machine, under which NumPy would be handicapped.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def main() -> int:
    """Measure, print, and write what was asked for; the exit status."""
    options = _parser().parse_args()
    for name in UNSET:  # before NumPy is imported
        if os.environ.pop(name, None) is not None:
            print(f"warning: {name} is set, and is not heeded: NumPy's products would not be at their best")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    report = json.loads(options.load.read_text()) if options.load else _measure(options)
    if options.load:
        _print_machine(report)
        for case in report["cases"]:
            print_case(case)
    if options.json:
        options.json.write_text(text_of(report))
    if options.chart or options.rows_chart:
        import chart

        if options.chart:
            chart.draw(report, options.chart)
        if options.rows_chart:
            chart.draw_rows(report, options.rows_chart)
    if not report["cases"]:
        print(f"no case begins with {' or '.join(options.only)}")
        return 2
    contenders = [(case["name"], contender) for case in report["cases"] for contender in case["contenders"]]
    wrong = [(name, c["name"]) for name, c in contenders if not c["agrees"] and not c.get("known")]
    for case_name, contender in wrong:
        print(f"DISAGREES: {contender} in {case_name}")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="CASE", help="beginnings of the names of cases")
    parser.add_argument("--workers", nargs="+", type=int, metavar="N", help="numbers of threads (default: 1 and 2)")
    parser.add_argument("--rounds", type=int, help="rounds at least (default: 7)")
    parser.add_argument("--megabytes", type=int, help="size of arrays out of cache (default: 1024)")
    parser.add_argument("--quick", action="store_true", help="2 rounds over small arrays, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine's facts")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the peers' speed (.svg or .png)")
    parser.add_argument("--rows-chart", type=Path, metavar="FILE", help="draw the time of a row over its classes")
    parser.add_argument("--load", type=Path, metavar="FILE", help="print and draw an earlier --json, measure nothing")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen cases, printing each as it ends."""
    import cases
    import cases_of_short_rows
    import harness

    rounds = options.rounds or (2 if options.quick else 7)
    megabytes = options.megabytes or (1 if options.quick else 1024)
    workers = options.workers or [1, 2][: os.cpu_count()]
    report: dict[str, Any] = {
        "machine": harness.machine(),
        "settings": {"rounds": rounds, "megabytes": megabytes, "workers": workers, "quick": options.quick},
        "cases": [],
    }
    _print_machine(report)
    of_short_rows = cases_of_short_rows.all_cases(quick=options.quick)
    for name, build in itertools.chain(of_short_rows, cases.all_cases(megabytes, workers, quick=options.quick)):
        if not name.startswith(tuple(options.only)):
            continue
        try:
            figures = harness.measure(name, build(), rounds, seconds=0.001 if options.quick else 0.02)
        except harness.UnavailableError as error:
            print(f"\n{name}: skipped ({error})")
            continue
        report["cases"].append(figures)
        print_case(figures)
    return report


def text_of(report: dict[str, Any]) -> str:
    """A report as JSON, with a line for each case and seven digits of each figure."""
    report = json.loads(json.dumps(report), parse_float=lambda figure: float(f"{float(figure):.7g}"))
    cases = ",\n".join(map(json.dumps, report.pop("cases")))
    return f'{json.dumps(report)[:-1]}, "cases": [\n{cases}\n]}}\n'


def _print_machine(report: dict[str, Any]) -> None:
    """Where this was measured."""
    machine, settings = report["machine"], report["settings"]
    print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, last-level cache {machine['last_level_cache']}, {machine['system']}"
    )
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    blas, bfloat16 = (", ".join(machine.get(key) or ["unknown"]) for key in ("blas", "bfloat16"))
    print(f"products by {blas}; instructions for bfloat16: {bfloat16}")
    print(f"medians of {settings['rounds']} interleaved rounds or more; {settings['megabytes']} MiB in large arrays")


COLUMNS = (
    ("x tokenloss", "times_tokenloss", 12, "{:.2f}", 1.0),
    ("of read", "of_read", 9, "{:.2f}", 1.0),
    ("of product", "of_product", 12, "{:.2f}", 1.0),
    ("GB/s", "gb_per_s", 8, "{:.2f}", 1.0),
    ("GFLOP/s", "gflop_per_s", 9, "{:.0f}", 1.0),
    ("ns a row", "ns_per_row", 10, "{:.1f}", 1.0),
    ("time", "median", 11, "{}", 1.0),
    ("+ memory", "extra_bytes", 11, "{:.1f} MB", 1e-6),
    ("CPUs", "cpus", 6, "{:.1f}", 1.0),
)


def print_case(case: dict[str, Any]) -> None:
    """One table: times over tokenloss's, speeds over that of reading or of a plain product, then absolute figures."""
    print(f"\n{case['name']}: {case['title']}")
    columns = [c for c in COLUMNS if any(contender.get(c[1]) is not None for contender in case["contenders"])]
    print(" " * 39 + "".join(title.rjust(width) for title, _, width, _, _ in columns))
    for contender in case["contenders"]:
        cells = [f"  {contender['name']:37}"]
        for _, key, width, form, scale in columns:
            value = contender[key]
            text = "-" if value is None else _duration(value) if key == "median" else form.format(value * scale)
            cells.append(text.rjust(width))
        remark = "" if contender["agrees"] else f"  {contender.get('known') or 'DISAGREES'}"
        print("".join(cells) + remark)
    for name, reason in case["missing"].items():
        print(f"  {name}: skipped ({reason})")
    if case["others_cpus"] > 0.1:
        print(f"  disturbed: {case['others_cpus']:.1f} CPUs were busy with other processes")
    sys.stdout.flush()


def _duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    unit, factor = next((u, f) for u, f in (("s", 1.0), ("ms", 1e3), ("us", 1e6)) if seconds * f >= 1 or u == "us")
    return f"{seconds * factor:.{1 if seconds * factor >= 100 else 2}f} {unit}"


if __name__ == "__main__":
    raise SystemExit(main())
