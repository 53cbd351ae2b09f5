"""Fixtures for all tests, and the files that cannot be collected without an optional package."""

import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

# NumPy's OpenBLAS has its threads wait for the next product in a loop, of up to 30 ms; before NumPy is imported
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import browser as browsers
import clients
import eval_harness
import needs
import numpy as np
import pytest
from places import TESTS
from programs import PATIENCE

import tokenloss
from tokenloss._command import cli
from tokenloss._core import _core

if needs.installed("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("tokenloss", deadline=None, database=None, print_blob=True)
    hypothesis.settings.load_profile("tokenloss")


# In images that set it, each of some 250 processes compiled the package anew, and each run its tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# collecting tests makes millions of objects and frees few of them: looking for those takes a fifth of its time
gc.disable()


def pytest_collection_finish():
    """Look for garbage again, but not among what was collected."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def any_loss_is_taken(monkeypatch):
    """Losses below 0 are taken, too: sums are exact of any numbers, such as the differences of losses."""
    monkeypatch.setattr("tokenloss._core.validation._LEAST_LOSS", -float("inf"))


# some platforms have no wheels of some packages in the extra `test`: files that need them are not collected there
LEFT_OUT = {
    path.relative_to(TESTS).as_posix(): needs.missing(needs.of_file(path, at_top=True))
    for path in sorted(TESTS.rglob("test_*.py"))
}
collect_ignore = [name for name, missing in LEFT_OUT.items() if missing]


def pytest_report_header():
    return [f"not collected: {name}, for want of {', '.join(LEFT_OUT[name])}" for name in collect_ignore]


def pytest_addoption(parser):
    parser.addoption("--missing", metavar="FILE", help="add the names of tests that a missing package skipped")


def pytest_terminal_summary(terminalreporter, config):
    """Write the file that `pytest @FILE` takes, for a run in which the packages are installed."""
    file = config.getoption("missing")
    if file and "PYTEST_XDIST_WORKER" not in os.environ:  # workers have a part of the tests each
        skipped = terminalreporter.stats.get("skipped", [])
        names = dict.fromkeys(report.nodeid for report in skipped if "could not import" in report.longrepr[2])
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"{name}\n" for name in names)


# fixtures, and why pytest-run-parallel must not run their tests in several threads at once
NOT_IN_PARALLEL = {
    "browser": "works in processes of its own",
    "cluster": "works in processes of its own",
    "compared": "writes the files of the fixture",
    "npy": "writes the files of the fixture",
    "npz": "writes the file of the fixture",
    "read": "writes the file of the fixture",
    "interrupt_each": "works in a process of its own",
    "run_python": "works in a process of its own",
    "sparse_file": "writes into the file of the fixture",
    "use_backend": "changes what all threads use",
    "write": "writes the file of the fixture",
}


MANY = 4  # cases of a test that all run by default
VERY_MANY = 6  # cases of a test of which each value of a parameter runs once


def left_out_of_sample(cases):
    """The cases of a test without which every two values of two parameters still meet, or of very many, each occurs."""
    values = {case: [(name, id(value)) for name, value in case.callspec.params.items()] for case in cases}
    together = min(1 if len(cases) > VERY_MANY else 2, len(next(iter(values.values()))))
    pairs = {case: set(itertools.combinations(values[case], together)) for case in cases}
    missing, left = set().union(*pairs.values()), set(cases)
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        left.discard(best)
    return left


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items):
    """Mark tests with these fixtures as thread-unsafe; mark as slow what a sample of a test's parameters leaves out."""
    for _, cases in itertools.groupby(items, lambda item: item.nodeid.partition("[")[0]):
        cases = [item for item in cases if hasattr(item, "callspec") and not item.get_closest_marker("slow")]
        for item in left_out_of_sample(cases) if len(cases) > MANY and len(cases[0].callspec.params) > 1 else ():
            item.add_marker(pytest.mark.slow)
    for item in items:
        for fixture in NOT_IN_PARALLEL.keys() & item.fixturenames:
            item.add_marker(pytest.mark.thread_unsafe(reason=NOT_IN_PARALLEL[fixture]))


@pytest.fixture(params=_core.backends())
def backend(request):
    """Run the test on every backend that this machine has."""
    in_use = _core.backend_in_use()
    _core.use_backend(request.param)
    yield request.param
    _core.use_backend(in_use)


@pytest.fixture
def use_backend():
    """Choose backends; afterwards restore the one that was in use."""
    in_use, matmul = _core.backend_in_use(), _core.bf16_matmul_in_use()
    yield _core.use_backend
    _core.use_backend(in_use, without={*_core.BF16_MATMULS} - {matmul})


@pytest.fixture
def run_python():
    """Run a program in a process of its own, with warnings as errors; return its output."""

    def run(program, *, timeout=60, fails=False, **environment):
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TOKENLOSS_")}
        path = [str(TESTS / "helpers"), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(path)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        # errors that end no process: an index out of bounds without the GIL, an assertion in a thread
        assert "Exception ignored in: 'tokenloss" not in done.stderr, done.stderr
        assert "Exception in thread" not in done.stderr, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def command(capsys):
    """Run the command line in this process; return its exit status and what it printed to stdout and stderr."""

    def command(*argv):
        status = cli.main([str(arg) for arg in argv])
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def score_json(command):
    """Run `tokenloss score --format json`; return what it printed."""
    return lambda *argv: json_of(command("score", *argv, "--format", "json"))


@pytest.fixture
def compare_json(command):
    """Run `tokenloss compare --format json`; return what it printed, of a single candidate without its list."""

    def run(*argv):
        result = json_of(command("compare", *argv, "--format", "json"))
        if len(result["candidates"]) == 1:
            assert result.pop("tiers", []) == []
        return result.pop("candidates")[0] | result if len(result["candidates"]) == 1 else result

    return run


def json_of(result):
    status, out, err = result
    assert (status, err) == (0, "")
    return json.loads(out, parse_constant=pytest.fail)


@pytest.fixture
def npz(tmp_path):
    """Save arrays as a .npz file."""

    def npz(name="scores.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return npz


@pytest.fixture
def npy(tmp_path):
    """Save two arrays as .npy files."""

    def npy(scores, targets):
        paths = tmp_path / "scores.npy", tmp_path / "targets.npy"
        for path, array in zip(paths, (scores, targets), strict=True):
            np.save(path, array)
        return paths

    return npy


@pytest.fixture
def shards(tmp_path):
    """Logits of 60 rows, their targets, and the files of three shards of them."""
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(size=(60, 11), scale=3).astype(np.float32), rng.integers(11, size=60)
    targets[::7] = -100
    for name, part in zip("abc", np.split(np.arange(60), [13, 40]), strict=True):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=targets[part])
        np.save(tmp_path / f"logits-{name}.npy", logits[part])
        np.save(tmp_path / f"targets-{name}.npy", targets[part])
    np.save(tmp_path / "all.npy", targets)
    np.savez(tmp_path / "whole.npz", logits=logits, targets=targets)
    return SimpleNamespace(logits=logits, targets=targets, path=tmp_path)


@pytest.fixture
def models(tmp_path):
    """Logits of a model and of its base, their targets, and files of them."""
    rng = np.random.default_rng(11)
    base = rng.normal(size=(4, 6, 9), scale=2).astype(np.float32)
    other = base + rng.normal(size=base.shape, scale=0.3).astype(np.float32)
    targets = rng.integers(9, size=(4, 6))
    np.savez(tmp_path / "base.npz", logits=base, targets=targets)
    np.save(tmp_path / "other.npy", other.reshape(24, 9))
    np.save(tmp_path / "targets.npy", targets)
    np.savez_compressed(tmp_path / "other.npz", probs=tokenloss.softmax(other.astype(np.float64)))
    return SimpleNamespace(base=base, other=other, targets=targets, path=tmp_path)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser for all tests of a process, in CI by all means."""
    program = browsers.find()
    if program is None:
        assert not (sys.platform == "linux" and "CI" in os.environ), f"CI must have one of {browsers.PROGRAMS}"
        pytest.skip("no Chromium is installed")
    browser = browsers.Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def compared(tmp_path):
    """Make a function that compares lists of samples."""

    def compare(base, other, **options):
        paths = clients.save_lines(tmp_path / "base.jsonl", *base), clients.save_lines(tmp_path / "other.jsonl", *other)
        return eval_harness.compare_pair(*paths, **options)

    return compare
