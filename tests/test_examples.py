"""The scripts that score a text with an engine: its own loss and tokenloss's agree."""

import re
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.thread_unsafe(reason="works in processes of its own")
EXAMPLES = ROOT / "benchmarks" / "examples"
NEEDS = {
    "with_llama_cpp.py": (),
    "with_onnxruntime.py": ("onnx", "onnxruntime"),
    "with_transformers.py": ("torch", "transformers"),
}


def test_every_script_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_loss_of_the_engine_is_ours(name):
    for module in NEEDS[name]:
        pytest.importorskip(module, reason="the engine is not installed")
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    own, ours = map(float, re.search(r" ([\d.]+), tokenloss ([\d.]+)", done.stdout).groups())
    assert ours == pytest.approx(own, rel=3e-7)  # the engines add up in float32
    assert 1 < ours < 20


@pytest.mark.parametrize("name", NEEDS)
def test_scripts_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40
