"""What many tests use."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenloss import _core


def installed(name):
    return importlib.util.find_spec(name) is not None


if installed("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("tokenloss", deadline=None, database=None, print_blob=True)
    hypothesis.settings.load_profile("tokenloss")


def needs(path):
    """The packages that a file of tests imports at its head, itself or through a helper."""
    for name in re.findall(r"^(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        helper = path.parent / f"{name}.py"
        if helper.exists():
            yield from needs(helper)
        else:
            yield name


# not every platform has wheels of all that the extra `test` names: what cannot be imported there is not collected
LEFT_OUT = {
    path.name: sorted({name for name in needs(path) if not installed(name)})
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
}
collect_ignore = [name for name, missing in LEFT_OUT.items() if missing]


def pytest_report_header():
    return [f"not collected: {name}, for want of {', '.join(LEFT_OUT[name])}" for name in collect_ignore]


# why tests with these fixtures stay in one thread where pytest-run-parallel runs each in several at once
NOT_IN_PARALLEL = {
    "browser": "works in processes of its own",
    "cluster": "works in processes of its own",
    "run_python": "works in a process of its own",
    "sparse_file": "writes into the file of the fixture",
    "use_backend": "changes what all threads use",
    "write": "writes the file of the fixture",
}


def pytest_collection_modifyitems(items):
    """Keep tests to one thread by the fixtures that they ask for."""
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
    """Choose backends; afterwards the one that was in use is so again."""
    in_use = _core.backend_in_use()
    yield _core.use_backend
    _core.use_backend(in_use)


@pytest.fixture
def run_python():
    """Run a program in a process of its own, where warnings are errors; return what it prints."""

    def run(program, *, timeout=60, fails=False, **environment):
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TOKENLOSS_")}
        path = [str(Path(__file__).parent), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(path)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        # what ends no process: an index out of bounds without the GIL, an assertion in a thread
        assert "Exception ignored in: 'tokenloss" not in done.stderr, done.stderr
        assert "Exception in thread" not in done.stderr, done.stderr
        return done.stderr if fails else done.stdout

    return run
