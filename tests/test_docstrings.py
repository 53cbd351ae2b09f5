"""Public docstrings: what one documents "as in `X`" is in X, in words of its own and with the same default."""

import inspect
import re
from functools import cache

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc
from test_docs import MEMBERS, NAMED, PUBLIC, name_of

import tokenloss

# entries that say nothing but where else to look, perhaps with a note of what differs
ELSEWHERE = re.compile(r"As in `([\w.]+)`")


@cache
def document(thing):
    """The parsed docstring of a function or class."""
    return ClassDoc(thing) if isinstance(thing, type) else FunctionDoc(thing)


FUNCTIONS = [thing for thing in [*PUBLIC, *MEMBERS] if callable(thing) and document(thing)["Parameters"]]
MODULES = [tokenloss, *(getattr(tokenloss, name) for name in tokenloss._PUBLIC_MODULES)]


def named(name):
    """The public function, class or method of a name, which may start with its module's; None if it is none."""
    first, *rest = name.removeprefix("tokenloss.").split(".")
    thing = next((getattr(module, first) for module in MODULES if hasattr(module, first)), None)
    for part in rest:
        thing = getattr(thing, part, None)
    return thing if thing in [*NAMED, *MEMBERS] else None


def entries(thing):
    """Each parameter that a docstring has, with its entry's type and text."""
    for entry in document(thing)["Parameters"]:
        for parameter in entry.name.split(", "):
            yield parameter, entry.type, " ".join(entry.desc)


def default(thing, parameter):
    """The default of a parameter."""
    return inspect.signature(thing).parameters[parameter].default


@pytest.mark.parametrize("thing", FUNCTIONS, ids=name_of)
def test_a_parameter_as_in_another_function_is_described_there(thing):
    for parameter, _, text in entries(thing):
        for name in re.findall(r"\b[Aa]s in `([\w.]+)`", text):
            assert named(name), f"{parameter}: `{name}` is not public"
        for name in ELSEWHERE.findall(text):
            other = named(name)
            described = [words for one, _, words in entries(other) if one == parameter]
            assert len(described) == 1, f"{parameter} is not in {name}"
            assert not ELSEWHERE.match(described[0]), f"{name} sends readers of {parameter} elsewhere"


@pytest.mark.parametrize("thing", FUNCTIONS, ids=name_of)
def test_a_default_is_that_of_the_function_described_or_documented_as_differing(thing):
    for parameter, kind, text in entries(thing):
        for name in ELSEWHERE.findall(text):
            same = default(thing, parameter) == default(named(name), parameter)
            assert same or "default" in kind + text, f"{parameter} has another default in {name}"


@pytest.mark.parametrize("thing", FUNCTIONS, ids=name_of)
def test_parameters_have_a_type_and_come_in_the_order_of_the_signature(thing):
    """Entries that say "As in `X`" need no type, and may come last."""
    order = [*inspect.signature(thing).parameters]
    described = []
    for entry in document(thing)["Parameters"]:
        names = [name.lstrip("*") for name in entry.name.split(", ")]
        if ELSEWHERE.match(entry.desc[0]):
            assert names == sorted(names, key=order.index)
        else:
            assert entry.type
            described += names
    assert described == sorted(described, key=order.index)


@pytest.mark.parametrize("thing", FUNCTIONS, ids=name_of)
def test_errors_as_in_another_function_are_described_there(thing):
    for entry in document(thing)["Raises"]:
        for name in ELSEWHERE.findall(" ".join(entry.desc)):
            others = document(named(name))["Raises"]
            described = {kind: " ".join(other.desc) for other in others for kind in other.type.split(", ")}
            for kind in entry.type.split(", "):
                assert kind in described, f"{kind} is not in {name}"
                assert not ELSEWHERE.match(described[kind]), f"{name} sends readers of {kind} elsewhere"
