"""The documentation: docstrings are as numpydoc asks, their examples run, and so does README's Python."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
import tomllib
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from numpydoc.docscrape import ClassDoc, get_doc_object
from numpydoc.validate import validate

import tokenloss
import tokenloss.dask
from tokenloss import formats, page, plots

pytestmark = pytest.mark.thread_unsafe(reason="doctest patches the standard library, and numpydoc is not thread-safe")
ROOT = Path(__file__).parents[1]
MODULES = [
    module.name for module in pkgutil.walk_packages(tokenloss.__path__, "tokenloss.") if "__main__" not in module.name
]
NAMED = [
    *(getattr(module, name) for module in (tokenloss, tokenloss.dask, formats) for name in module.__all__),
    *(formats.llama_cpp.write, page.write_page, plots.check, plots.draw_divergences, plots.draw_losses, plots.save),
]
PUBLIC = [thing for thing in NAMED if inspect.isroutine(thing) or inspect.isclass(thing)]
RESULTS = [thing for thing in PUBLIC if dataclasses.is_dataclass(thing)]
MEMBERS = [
    member
    for thing in PUBLIC
    if inspect.isclass(thing)
    for name, member in vars(thing).items()
    if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
]

CHECKS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["numpydoc_validation"]["checks"]
assert CHECKS[0] == "all"  # but those that follow

SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
OF_CLUSTERS = "ray.remote"  # stands in what needs Ray, Spark or MPI


def name_of(thing):
    """The name that a test's report shows."""
    function = thing.fget if isinstance(thing, property) else thing
    return f"{function.__module__}.{function.__qualname__}"


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


@pytest.mark.parametrize("thing", [*PUBLIC, *MEMBERS], ids=name_of)
def test_docstrings_are_as_numpydoc_asks(thing):
    errors = dict(validate(get_doc_object(thing))["errors"])
    if thing in RESULTS:  # the package makes them: their fields are attributes
        del errors["PR01"]
    assert {code: message for code, message in errors.items() if code not in CHECKS} == {}


@pytest.mark.parametrize("thing", RESULTS, ids=name_of)
def test_results_tell_of_every_field(thing):
    described = [name for entry in ClassDoc(thing)["Attributes"] for name in entry.name.split(", ")]
    fields = {field.name for field in dataclasses.fields(thing) if not field.name.startswith("_")}
    assert fields <= set(described)


@pytest.mark.parametrize("thing", PUBLIC, ids=name_of)
def test_public_names_have_examples(thing):
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(thing))


@pytest.mark.parametrize("thing", [thing for thing in PUBLIC if inspect.isroutine(thing)], ids=name_of)
def test_functions_tell_what_they_raise(thing):
    assert get_doc_object(thing)["Raises"]


@pytest.fixture
def arrays_on_disk(tmp_path, monkeypatch):
    """Be where README's files are."""
    monkeypatch.chdir(tmp_path)
    da.from_array(np.zeros((4, 10), np.float32), chunks=2).to_zarr("logits.zarr")
    da.from_array(np.arange(4)).to_zarr("targets.zarr")


@pytest.mark.usefixtures("arrays_on_disk")
@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if OF_CLUSTERS not in snippet])
def test_python_of_the_readme_runs(snippet):
    names = {}
    exec(snippet, names)  # noqa: S102 -- our own README
    for expression, digits in re.findall(r"^(\S.*?)  # (\d+\.\d+)\.\.\.", snippet, re.MULTILINE):
        assert str(eval(expression, names)).startswith(digits), expression  # noqa: S307 -- our own README


def test_only_what_needs_a_cluster_of_others_is_not_run():
    (snippet,) = (snippet for snippet in SNIPPETS if OF_CLUSTERS in snippet)
    for line in textwrap.dedent(snippet).splitlines():
        assert re.search("# (Ray|Spark|MPI)", line)
        compile(line, "README.md", "exec")
