"""The program that scores files on several processes: the figures of one, whatever runs the processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

from tokenloss import evaluate

pytestmark = [
    pytest.mark.thread_unsafe(reason="works in processes of its own"),
    pytest.mark.filterwarnings("ignore"),
]
PROGRAM = ROOT / "benchmarks" / "examples" / "score_on_processes.py"
STAND_INS = ROOT / "tests" / "helpers" / "stand_ins"


@pytest.fixture
def paths(tmp_path, rng):
    """Three files of logits and input ids."""
    paths = [tmp_path / f"{number}.npz" for number in range(3)]
    for path in paths:
        np.savez(path, logits=rng.normal(size=(4, 9, 30)), input_ids=rng.integers(30, size=(4, 9)))
    return paths


@pytest.mark.parametrize(
    ("way", "module"),
    [
        pytest.param("spawn", "sys", marks=pytest.mark.slow),
        ("joblib", "joblib"),
        ("ray", "cloudpickle"),
        ("spark", "cloudpickle"),
    ],
)
def test_processes_give_the_figures_of_one(way, module, paths):
    pytest.importorskip(module)
    path = os.pathsep.join([str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-X", "utf8", PROGRAM, *paths, "--by", way],
        capture_output=True, encoding="utf-8", timeout=120, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    without_times = [line for line in done.stdout.splitlines() if not line.startswith("  time ")]
    assert without_times == evaluate(paths, shift=True).summary().splitlines()


def test_the_page_shows_lines_of_the_program():
    page = ROOT / ".github" / "docs" / "how-to" / "clusters.md"
    if not page.exists():
        pytest.skip("an sdist has no .github")
    program = [line.strip() for line in PROGRAM.read_text("utf-8").splitlines()]
    shown = page.read_text("utf-8").partition("## Ray and Spark")[2].partition("```text\n")[2].partition("```")[0]
    assert [line for line in shown.splitlines() if line.strip() not in (*program, "")] == []
    assert shown.count("\n") == 6
