"""What is released: one version everywhere, and only what is needed is installed."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT, TESTS

import tokenloss


def test_changelog_begins_with_this_version():
    heading = re.search("^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1]
    released, _, development = tokenloss.__version__.partition(".dev")
    assert heading == (f"{released} (unreleased)" if development else released)


@pytest.mark.skipif(not (ROOT / ".github/CITATION.cff").exists(), reason="tests of wheels have not all files")
def test_citation_has_this_version():
    assert f"\nversion: {tokenloss.__version__}\n" in (ROOT / ".github/CITATION.cff").read_text("utf-8")


def test_installed_version_is_that_of_the_package():
    assert metadata.version("tokenloss") == tokenloss.__version__


def test_only_the_package_is_installed():
    distribution = metadata.distribution("tokenloss")
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if url.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install lists none of the package's files")
    files = [file for file in distribution.files if "__pycache__" not in file.parts]
    ours = {file.as_posix() for file in files if file.parts[0] == "tokenloss"}
    source = ROOT / "src" / "tokenloss"
    if (source / "__init__.py").exists():  # tests of wheels have only the kernels
        compiled = {".c", ".h", ".md", ".pxd", ".pxi", ".pyx", ".so", ".pyd", ".pyc"}
        needed = {path for path in source.rglob("*.*") if path.suffix not in compiled}
        assert {path.relative_to(source.parent).as_posix() for path in needed} <= ours
    assert {Path(name).suffix for name in ours} - {".css", ".js", ".py", ".pyi", ".typed"} in ({".so"}, {".pyd"})
    others = {file.parts[0] for file in files} - {"tokenloss", ".."}  # the command is above
    assert others == {f"tokenloss-{tokenloss.__version__}.dist-info"}


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no workflows")
def test_workflows_run_each_step():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for file, name in ("ci", "steps"), ("platforms", "platforms"):
        workflow = (ROOT / ".github" / "workflows" / f"{file}.yml").read_text("utf-8")
        jobs = re.search(r"^        step:((?:\n          - .+)+| \[.+\])$", workflow, re.MULTILINE)[1]
        steps = re.search(rf"^{name}=\((.+)\)$", script, re.MULTILINE)[1].split()
        assert sorted(re.findall(r"\w+", jobs)) == sorted(steps)
    packages = re.findall(r"^    \[(\w+)\]=", script, re.MULTILINE)
    functions = re.findall(r"^(\w+)\(\) {", script, re.MULTILINE)
    assert {*packages} <= {*functions}  # a step without packages is refused


def test_each_mutant_in_c_changes_one_place_and_names_tests():
    mutants = tomllib.loads((TESTS / "c" / "mutants.toml").read_text("utf-8"))["mutants"]
    core = ROOT / "src" / "tokenloss" / "_core"
    if not (core / "_core.pyx").exists():
        pytest.skip("tests of wheels have no Cython")
    for mutant in mutants:
        assert (core / mutant["file"]).read_text("utf-8").count(mutant["original"]) == 1, mutant["original"]
        assert mutant["original"] != mutant["mutated"]
        assert all((ROOT / tests).exists() for tests in mutant["tests"].split()), mutant["tests"]
