"""Times tokenloss and other libraries at the same work, in one process, round by round, and measures their errors.

Ratios come first: a shared machine's speed drifts, and the ratio of two neighboring runs hardly does. Timings never
fail; contenders that disagree about the result do (exit status 1), unless they overflow and are known to.

    python benchmarks/run.py --write                       # everything, and writes it into results/ and both READMEs
    python benchmarks/run.py --only short/float32 planes   # prints the cases whose names begin so
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import report

# Overrides of what OpenBLAS finds out about the machine, under which NumPy would be handicapped.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# JAX on one thread of the processor: XLA finds the size of its thread pool there. torch compiles without helpers.
SET = {"JAX_PLATFORMS": "cpu", "NPROC": "1", "PJRT_NPROC": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def main() -> int:
    """Measure, print, and write what was asked for; the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="CASE", help="beginnings of the names of cases")
    parser.add_argument("--rounds", type=int, help="rounds at least (default: 7)")
    parser.add_argument("--quick", action="store_true", help="1 round over small arrays, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine's facts")
    parser.add_argument("--write", action="store_true", help="write results/PROCESSOR.json, and all tables and charts")
    options = parser.parse_args()
    for name in UNSET:  # before NumPy is imported
        if os.environ.pop(name, None) is not None:
            print(f"warning: {name} is set, and is not heeded: NumPy's products would not be at their best")
    os.environ.update(SET)
    measured = _measure(options)
    if not measured["cases"] and not measured["accuracy"]:
        print(f"no case begins with {' or '.join(options.only)}")
        return 2
    if options.json:
        options.json.write_text(report.text_of(measured), "utf-8")
    if options.write:
        report.save(measured)
        report.write()
    wrong = [(case["name"], c["name"]) for case in measured["cases"] for c in case["contenders"] if not _is_right(c)]
    for case_name, contender in wrong:
        print(f"DISAGREES: {contender} in {case_name}")
    return 1 if wrong else 0


def _is_right(contender: dict[str, Any]) -> bool:
    """Whether a contender's result agrees with ours, or differs because it is known to overflow."""
    return bool(contender["agrees"] or contender["known"])


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the chosen cases, printing each as it ends."""
    import accuracy
    import cases
    import cases_of_layouts
    import cases_of_short_rows
    import harness

    harness.keep_freed_memory()
    start = time.perf_counter()
    rounds = options.rounds or (1 if options.quick else 7)
    machine = harness.machine()
    settings = {"rounds": rounds, "quick": options.quick}
    measured: dict[str, Any] = {"machine": machine, **settings, "accuracy": [], "cases": []}
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    builders = (module.all_cases(quick=options.quick) for module in (cases_of_short_rows, cases_of_layouts, cases))
    for name, build in itertools.chain(*builders):
        if not name.startswith(tuple(options.only)):
            continue
        try:
            case = harness.measure(name, build(), rounds, quick=options.quick)
        except harness.UnavailableError as error:
            print(f"\n{name}: skipped ({error})")
            continue
        measured["cases"].append(case)
        _print_case(case)
        if options.json:  # so that a run that is interrupted leaves something
            options.json.write_text(report.text_of(measured), "utf-8")
    errors = accuracy.measure(quick=options.quick) if "accuracy".startswith(tuple(options.only)) else ()
    for row in errors:
        measured["accuracy"].append(row)
        largest = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        print(f"largest errors of {row['dtype']}, {row['kind']}: {largest}")
    print(f"\n{time.perf_counter() - start:.0f} s")
    return measured


COLUMNS = {
    "x tokenloss": ("times_tokenloss", "{:.2f}", 1.0),
    "of read": ("of_read", "{:.2f}", 1.0),
    "of copy": ("of_copy", "{:.2f}", 1.0),
    "of product": ("of_product", "{:.2f}", 1.0),
    "time in us": ("time", "{:.5g}", 1e6),
    "+ MB": ("extra_bytes", "{:.1f}", 1e-6),
}


def _print_case(case: dict[str, Any]) -> None:
    """One table: times over tokenloss's, speeds over that of reading or of a plain product, then absolute figures."""
    print(f"\n{case['name']}: {case['title']}")
    columns = {head: c for head, c in COLUMNS.items() if case["contenders"][0].get(c[0]) is not None}
    print(" " * 50 + "".join(head.rjust(12) for head in columns))
    for contender in case["contenders"]:
        cells = [form.format(contender[key] * scale).rjust(12) for key, form, scale in columns.values()]
        remark = "" if contender["agrees"] else f"  {contender['known'] or 'DISAGREES'}"
        print(f"  {contender['name']:48}{''.join(cells)}{remark}")
    for name, reason in case["missing"].items():
        print(f"  {name}: skipped ({reason})")
    if case["others_cpus"] > 0.1:
        print(f"  disturbed: {case['others_cpus']:.1f} CPUs were busy with other processes")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
