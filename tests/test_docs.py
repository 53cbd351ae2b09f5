"""The docstrings: their examples run, and they have the sections that numpydoc asks for."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import tokenloss

FUNCTIONS = [name for name in tokenloss.__all__ if inspect.isfunction(getattr(tokenloss, name))]
MODULES = [
    module.name for module in pkgutil.walk_packages(tokenloss.__path__, "tokenloss.") if "__main__" not in module.name
]


def sections(docstring):
    """The text of each section, by its name."""
    lines = inspect.cleandoc(docstring).splitlines()
    starts = [i for i in range(len(lines) - 1) if lines[i] and lines[i + 1] == "-" * len(lines[i])]
    return {
        lines[start]: "\n".join(lines[start + 2 : end])
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    }


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


@pytest.mark.parametrize("name", tokenloss.__all__)
def test_public_names_have_examples(name):
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(getattr(tokenloss, name)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_every_section_and_tell_of_every_parameter(name):
    function = getattr(tokenloss, name)
    found = sections(function.__doc__)
    assert {"Parameters", "Returns", "Examples"} <= set(found)
    assert any("Raises" in section for section in found)
    described = {
        word.strip()
        for line in found["Parameters"].splitlines()
        for word in line.split(" : ")[0].split(",")
        if " : " in line and not line.startswith(" ")
    }
    assert described == set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", tokenloss.__all__)
def test_docstrings_begin_with_one_line(name):
    first, *rest = inspect.getdoc(getattr(tokenloss, name)).splitlines()
    assert first.endswith(".")
    assert len(first) < 100
    assert rest[0] == ""


def test_meter_tells_of_every_method_and_property():
    for name, member in vars(tokenloss.LossMeter).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), name
    found = sections(tokenloss.LossMeter.update.__doc__)
    assert {"Parameters", "Raises"} <= set(found)
