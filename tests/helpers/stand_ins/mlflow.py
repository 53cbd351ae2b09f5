"""What the documentation uses of MLflow 3.17: runs, whose figures and files are kept in a folder."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

_RUNS = []


@contextlib.contextmanager
def start_run(run_name=None):
    """A run, to which what is logged meanwhile belongs."""
    run_id = f"{len(_RUNS)}"
    run = SimpleNamespace(info=SimpleNamespace(run_id=run_id, run_name=run_name), data=SimpleNamespace(metrics={}))
    _RUNS.append(run)
    _artifacts().mkdir(parents=True)
    yield run


def get_run(run_id):
    """A run by its number."""
    return _RUNS[int(run_id)]


def log_metrics(metrics):
    """Add numbers to the run."""
    assert all(isinstance(value, float) for value in metrics.values())
    _RUNS[-1].data.metrics.update(metrics)


def log_dict(dictionary, artifact_file):
    """Add a dictionary to the run, as a file of JSON."""
    (_artifacts() / artifact_file).write_text(json.dumps(dictionary))


def log_artifact(local_path):
    """Add a file to the run."""
    shutil.copy(local_path, _artifacts())


def _artifacts():
    return Path("mlruns", _RUNS[-1].info.run_id)
