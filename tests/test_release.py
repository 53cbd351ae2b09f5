"""What is released: one version everywhere, and only what is needed is installed."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT

import tokenloss


def test_changelog_begins_with_this_version():
    heading = re.search("^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1]
    released, _, development = tokenloss.__version__.partition(".dev")
    assert heading == (f"{released} (unreleased)" if development else released)


def test_installed_version_is_that_of_the_package():
    assert metadata.version("tokenloss") == tokenloss.__version__


def test_only_the_package_is_installed():
    distribution = metadata.distribution("tokenloss")
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if url.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install lists none of the package's files")
    files = [file for file in distribution.files if "__pycache__" not in file.parts]
    ours = {file.as_posix() for file in files if file.parts[0] == "tokenloss"}
    assert {
        f"tokenloss/{name}" for name in ("_core/_core.pyi", "_output/page.css", "_output/page.js", "py.typed")
    } <= ours
    assert {Path(name).suffix for name in ours} - {".css", ".js", ".py", ".pyi", ".typed"} in ({".so"}, {".pyd"})
    others = {file.parts[0] for file in files} - {"tokenloss", ".."}  # the command is above
    assert others == {f"tokenloss-{tokenloss.__version__}.dist-info"}


def test_workflow_runs_each_step():
    script, workflow = ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "ci.yml"
    if not script.exists():
        pytest.skip("an sdist has no workflows")
    steps = re.search(r"^steps=\((.+)\)$", script.read_text("utf-8"), re.MULTILINE)[1].split()
    jobs = re.search(r"^        step:\n((?:          - .+\n)+)", workflow.read_text("utf-8"), re.MULTILINE)[1]
    assert re.findall("- (.+)", jobs) == steps
