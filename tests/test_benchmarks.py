"""The benchmarks: a quick run ends, contenders agree, and the pages show what was measured.

No test depends on a time.
"""

import json
import re
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.thread_unsafe(reason="works in processes of its own")
BENCHMARKS = ROOT / "benchmarks"
# a case of each kind; `.ci/run benchmarks` runs all
CASES = (
    "short/float32/10",
    "planes/5",
    "cold/250000x100/float32",
    "tiny/ids/3",
    "sums/",
    "large/log_softmax",
    "accuracy",
)


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
    printed = run("run.py", "--quick", "--json", file, "--only", *CASES)
    return json.loads(file.read_text("utf-8")), file, printed


@pytest.mark.slow
def test_quick_run_has_the_cases_that_were_asked_for(measured):
    report, _, printed = measured
    names = [case["name"] for case in report["cases"]]
    for begins in CASES[:-1]:
        assert any(name.startswith(begins) for name in names), begins
    assert all(f"\n{name}: " in printed for name in names)
    assert {row["dtype"] for row in report["accuracy"]} >= {"float16", "float32", "float64"}


@pytest.mark.slow
def test_contenders_of_a_quick_run_agree(measured):
    for case in measured[0]["cases"]:
        wrong = [each["name"] for each in case["contenders"] if not each["agrees"] and not each["known"]]
        assert (case["name"], wrong) == (case["name"], [])


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["NumPy", "the tutorial's", "torch", "SciPy", "scikit-learn", "JAX", "onnxruntime"])
def test_short_rows_are_compared_with(begins, measured):
    module = {"torch": "torch", "SciPy": "scipy", "scikit-learn": "sklearn", "JAX": "jax", "onnxruntime": "onnxruntime"}
    pytest.importorskip(module.get(begins, "numpy"))
    (case,) = (case for case in measured[0]["cases"] if case["name"] == "short/float32/10")
    assert any(contender["name"].startswith(begins) for contender in case["contenders"])


@pytest.mark.slow
def test_compiled_torch_is_a_contender_or_said_to_be_missing(measured):
    pytest.importorskip("torch")
    (case,) = (case for case in measured[0]["cases"] if case["name"] == "short/float32/10")
    compiled = [each["name"] for each in case["contenders"] if each["name"].startswith("torch.compile")]
    assert bool(compiled) != ("torch.compile" in case["missing"])


@pytest.mark.slow
def test_tables_of_a_quick_run(measured):
    printed = run("report.py", measured[1])
    for words in ("A quick run", "| classes |", "| channels |", "`LossMeter.update`", "| dtype |", "of a copy's:"):
        assert words in printed


@pytest.mark.slow
def test_estimates_are_printed_beside_what_rows_cost():
    printed = run("costs.py", "--only", "log", "--seconds", "0.001")
    row = r"(?m)^log(?:_softmax|sumexp) +\d+ +-?[\d.]+ ns, estimated +[1-9][\d.]*, +-?[\d.]+$"
    assert len(re.findall(row, printed)) == 40


@pytest.mark.slow
def test_quick_run_of_scale():
    """Every part of it; the exit status tells of results with other bits."""
    sizes = ("--files", 40, "--meters", 2000, "--sequences", 4000, "--blocks", 50, "--shards", 20)
    printed = run("scale.py", "--quick", *map(str, sizes))
    for part in ("states", "tokens", "files", "sequences", "blocks", "dask"):
        assert f"\n{part}\n" in printed
    assert "different results of 5 random orders" in printed
    assert "WRONG" not in printed


@pytest.mark.skipif(not (BENCHMARKS / "results").exists(), reason="the sdist leaves out benchmarks/results")
def test_pages_show_what_was_measured(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    for path, text in report.texts().items():
        shown = path.read_text("utf-8")
        agrees = drawn_alike(shown, text) if path.suffix == ".svg" else shown == text
        assert agrees, f"{path.name}: python benchmarks/report.py writes it anew"
        assert len(text) < 60_000


@pytest.mark.skipif(not (BENCHMARKS / "results").exists(), reason="the sdist leaves out benchmarks/results")
def test_results_are_saved_where_pages_read_them(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    recorded, *_ = report.RESULTS.glob("*.json")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.save(json.loads(recorded.read_text("utf-8")))
    assert (tmp_path / recorded.name).read_text("utf-8") == recorded.read_text("utf-8")


@pytest.mark.skipif(not (BENCHMARKS / "results").exists(), reason="the sdist leaves out benchmarks/results")
def test_readme_compares_the_times_that_its_chart_shows():
    readme = (ROOT / "README.md").read_text("utf-8")
    (chart,) = re.findall(r"benchmarks/results/(.+)-readme\.svg", readme)
    cases = json.loads((BENCHMARKS / "results" / f"{chart}.json").read_text("utf-8"))["cases"]
    (case,) = (case for case in cases if case["name"] == "large/cross_entropy/float32/1")

    def multiple(library):
        times = (way["times_tokenloss"] for way in case["contenders"] if way["name"].partition(",")[0] == library)
        return f"{min(times):.1f}x"

    compiled = f"({multiple('torch.compile')} with `torch.compile`)"
    assert f"{multiple('torch')} faster than PyTorch {compiled} and {multiple('NumPy')} faster than NumPy" in readme


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has no .github")
def test_page_about_errors_shows_those_that_were_measured():
    page = (ROOT / ".github" / "docs" / "explained" / "exact.md").read_text("utf-8")
    (errors,) = re.findall(r"^\| dtype \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    assert f"\n\n{errors}" in (BENCHMARKS / "README.md").read_text("utf-8")


def drawn_alike(shown, drawn):
    """Whether a chart is the one that is drawn: byte for byte, or word for word if another matplotlib drew it."""
    versions, words = re.compile("Matplotlib v[^,]+"), re.compile("<text[^>]*>([^<]*)")
    if versions.findall(shown) == versions.findall(drawn):
        return shown == drawn
    return words.findall(shown) == words.findall(drawn) != []
