"""What many tests use."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from tokenloss import _core

hypothesis.settings.register_profile("tokenloss", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("tokenloss")


@pytest.fixture(params=_core.backends())
def backend(request):
    """Run the test on every backend that this machine has."""
    in_use = _core.backend_in_use()
    _core.use_backend(request.param)
    yield request.param
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
        return done.stderr if fails else done.stdout

    return run
