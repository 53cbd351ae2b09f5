"""The benchmarks of short rows: a quick run ends, contenders agree, and the tables show what was measured.

No test depends on a time.
"""

import json
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.thread_unsafe(reason="works in processes of its own")
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results" / "short_rows.json"
needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="the sdist leaves out benchmarks/results")
# what charts and tables show; `.ci/run benchmarks` runs all
CASES = ("short/float32/10", "short_ids/2", "channel_first/5", "log_loss/1000000x100/float32", "tiny/ids/3", "sums/")


def run(script, *arguments):
    """What a script of the benchmarks prints."""
    command = [sys.executable, "-X", "utf8", BENCHMARKS / script, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The report of a quick run, its file, and what was printed."""
    file = tmp_path_factory.mktemp("benchmarks") / "quick.json"
    printed = run("run.py", "--quick", "--rounds", "1", "--workers", "1", "--json", file, "--only", *CASES)
    return json.loads(file.read_text("utf-8")), file, printed


def test_quick_run_has_the_cases_that_were_asked_for(measured):
    report, _, printed = measured
    names = [case["name"] for case in report["cases"]]
    for begins in CASES:
        assert any(name.startswith(begins) for name in names), begins
    assert all(f"\n{name}: " in printed for name in names)


def test_contenders_of_a_quick_run_agree(measured):
    for case in measured[0]["cases"]:
        wrong = [each["name"] for each in case["contenders"] if not each["agrees"] and not each["known"]]
        assert (case["name"], wrong) == (case["name"], [])


@pytest.mark.parametrize("begins", ["NumPy", "the tutorial's", "torch", "SciPy", "scikit-learn"])
def test_short_rows_are_compared_with(begins, measured):
    module = {"torch": "torch", "SciPy": "scipy", "scikit-learn": "sklearn"}.get(begins, "numpy")
    pytest.importorskip(module, reason="the library is not installed")
    (case,) = (case for case in measured[0]["cases"] if case["name"] == "short/float32/10")
    assert any(contender["name"].startswith(begins) for contender in case["contenders"])


def test_chart_of_rows(measured, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    chart = tmp_path / "rows.svg"
    run("run.py", "--load", measured[1], "--rows-chart", chart)
    assert chart.read_text("utf-8").startswith("<?xml")
    assert chart.stat().st_size < 60_000


def test_tables_of_a_quick_run(measured):
    printed = run("tables.py", measured[1])
    for words in ("A quick run", "| classes |", "| channels |", "`LossMeter.update`", "| work | 2 classes |"):
        assert words in printed


@needs_results
def test_tables_are_those_that_were_measured():
    section, _, table = run("tables.py", RESULTS).partition("For README.md")
    assert section.strip() in (BENCHMARKS / "README.md").read_text("utf-8")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    shown = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert lines[0] not in shown or set(lines) <= set(shown)


@needs_results
def test_chart_in_the_readme_is_small():
    assert RESULTS.with_suffix(".svg").stat().st_size < 60_000
