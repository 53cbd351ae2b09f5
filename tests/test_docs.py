"""The documentation: docstrings are as numpydoc asks, their examples run, and so does what README shows."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import pytest
from numpydoc.docscrape import ClassDoc, get_doc_object
from numpydoc.validate import validate
from places import ROOT

import tokenloss
from tokenloss import formats
from tokenloss._command.arguments import make_parser
from tokenloss._comparison.paired import PairedLosses
from tokenloss._core.result import Result
from tokenloss._statistics.meter import LossMetrics
from tokenloss.formats import Source

pytestmark = pytest.mark.thread_unsafe(reason="doctest patches the standard library, and numpydoc is not thread-safe")
MODULES = [
    module.name for module in pkgutil.walk_packages(tokenloss.__path__, "tokenloss.") if "__main__" not in module.name
]
NAMED = [
    *(
        getattr(module, name)
        for module in (tokenloss, *(getattr(tokenloss, name) for name in tokenloss._PUBLIC_MODULES))
        for name in module.__all__
    ),
    formats.llama_cpp.write,
]


def _documented(member):
    """What numpydoc reads of a member of a class: the function of a class method, and a property."""
    return member.__func__ if isinstance(member, classmethod) else member


PUBLIC = [thing for thing in NAMED if inspect.isroutine(thing) or inspect.isclass(thing)]
RESULTS = [thing for thing in PUBLIC if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")]
MEMBERS = [
    _documented(member)
    for thing in [*PUBLIC, Result, LossMetrics, PairedLosses]
    if inspect.isclass(thing)
    for name, member in vars(thing).items()
    if not name.startswith("_")
    and (inspect.isroutine(member) or isinstance(member, property))
    and not any(name in vars(base) for base in thing.__mro__[1:-1])  # which tells of it
]

CHECKS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["numpydoc_validation"]["checks"]
assert CHECKS[0] == "all"  # but those that follow

README = (ROOT / "README.md").read_text("utf-8")
# GitHub shows these; of a checkout, an sdist has those outside .github alone
PAGES = sorted(page for form in ("*.md", ".github/**/*.md", "*/README.md", "*/*/README.md") for page in ROOT.glob(form))


def name_of(thing):
    """The name that a test's report shows."""
    function = thing.fget if isinstance(thing, property) else thing
    return f"{function.__module__}.{function.__qualname__}"


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


def module_of(thing):
    """The module of the implementation that has a class."""
    defines = re.compile(rf"^class {thing.__name__}\b", re.MULTILINE)
    paths = ((name, Path(sys.modules[name].__file__)) for name in MODULES if name in sys.modules)
    return next(name for name, path in paths if path.suffix == ".py" and defines.search(path.read_text("utf-8")))


@pytest.mark.parametrize("thing", [*PUBLIC, *MEMBERS], ids=name_of)
def test_docstrings_are_as_numpydoc_asks(thing, monkeypatch):
    if inspect.isclass(thing):  # since Python 3.13, its source is looked for in the module that it names
        monkeypatch.setattr(thing, "__module__", module_of(thing))
    errors = dict(validate(get_doc_object(thing))["errors"])
    if thing in RESULTS:  # the package makes them: their fields are attributes
        del errors["PR01"]
    assert {code: message for code, message in errors.items() if code not in CHECKS} == {}


@pytest.mark.parametrize("thing", RESULTS, ids=name_of)
def test_results_tell_of_every_field(thing):
    described, of_base = (
        [name for entry in ClassDoc(one)["Attributes"] for name in entry.name.split(", ")]
        for one in (thing, thing.__base__ if issubclass(thing, Source) else object)
    )
    assert len(described) == len(set(described))
    fields = thing._fields if hasattr(thing, "_fields") else [field.name for field in dataclasses.fields(thing)]
    assert {name for name in fields if not name.startswith("_")} <= {*described, *of_base}


def is_run_with_its_module(thing):
    """Whether `test_examples_run` runs the examples of a public name: testmod leaves out what says to be elsewhere."""
    module = sys.modules[thing.__module__]
    is_there = module.__name__ in MODULES and vars(module).get(thing.__name__) is thing
    return is_there and (inspect.isclass(thing) or thing.__globals__ is vars(module))


@pytest.mark.parametrize("thing", PUBLIC, ids=name_of)
def test_public_names_have_examples_that_run(thing):
    tests = doctest.DocTestFinder().find(thing, name_of(thing), module=False, globs={thing.__name__: thing})
    assert any(test.examples for test in tests)
    if is_run_with_its_module(thing):
        return
    runner = doctest.DocTestRunner()
    assert sum(runner.run(test).failed for test in tests) == 0


@pytest.mark.parametrize("thing", [thing for thing in PUBLIC if inspect.isroutine(thing)], ids=name_of)
def test_functions_tell_what_they_raise(thing):
    assert get_doc_object(thing)["Raises"]


def test_readme_is_short():
    assert README.count("\n") <= 80
    assert len(README.split()) <= 650
    assert sum(line.startswith("pip install ") for line in README.splitlines()) == 2  # those that `.ci/run readme` runs


def test_readme_of_tests_names_every_file_and_helper():
    before, _, after = (ROOT / "tests" / "README.md").read_text("utf-8").partition("Helpers: ")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+)", before, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py"))
    helpers = re.findall(r"`(\w+)\.py`", after.partition("\n## ")[0])
    assert {*helpers} == {"conftest", *(path.stem for path in (ROOT / "tests" / "helpers").glob("*.py"))}


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has not all that pages refer to")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        name, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE) if heading else []
        assert heading in ["", *(re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings)], link


# words that a native speaker would not choose, and what to write; `course` and code between backticks are no such words
TICS = {
    r"(?:^|[.:;*|] )Of (?!course\b)[a-z]": "For X, ...",
    r"\b[Aa]lone\b": "only",
    r"\bwhat (?:came(?! next)|fits)\b": "the value given; the accepted values",
    r"\b(?:are|is) none\b|\bif there are any\b": "if present; None if ...",
    r"\bonce for all (?!the)\b|\bwithout a word\b|\bby a hair\b": "only once; silently; just",
    r"(?i)\b(?:quant|normal|minim|optim|recogn|serial|summar|organ|random)is(?:e|ed|es|ing|ation|er)\b": "-ize",
    r"(?i)\b(?:colour|behaviour|neighbour|favour)|\b(?:labelled|modelling)\b": "American spelling",
    r"(?i)(?<!there )\b(?:is|are) no (?!longer\b|more\b|less\b|matter\b)": "is not a",
    r"(?i)\b(?:is|are) th(?:at|ose) of\b|\bof whose\b": "the noun; whose",
    r"(?i)\b(?:go|goes|went|going) on\b": "continue, resume",
    r"(?i)\btak(?:en|es?)(?: \w+)? as (?:independent|logits|parts|targets)\b": "treated as",
    r"(?i)\bbeside\b": "next to; compared with; in addition to",
    r"(?i)\btold\b|\btells? (?:\w+ )?(?:apart|from|which|whether)\b": "distinguished; shows",
    r"(?i)\bof the (?:shape|dtype) of\b": "in the shape of; with the dtype of",
    r"(?i)\bsurely\b|\bso many\b|\bin the place of\b|\bfor want of\b": "significantly; this many; in place of; without",
    r"(?i)\bgreatest\b": "largest",
}


def tics_in(text):
    """The lines of a text in which a tic is, with what to write."""
    for line in re.sub(r"(?ms)^ *```.*?^ *```$", "", text).splitlines():
        for tic, better in TICS.items():
            if re.search(tic, re.sub(r"``.+?``|`[^`]+`|^\s*>>>.*", "", line)):
                yield f"{line.strip()} -> {better}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_are_written_in_natural_english(page):
    if "kernels" not in page.parts and "data" not in page.parts:
        assert [*tics_in(page.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "thing", [tokenloss, *PUBLIC, *MEMBERS], ids=lambda thing: getattr(thing, "__name__", "property")
)
def test_docstrings_are_written_in_natural_english(thing):
    assert [*tics_in(inspect.getdoc(thing) or "")] == []


def test_help_is_written_in_natural_english():
    for parser in make_parser().files.choices.values():
        assert [*tics_in(parser.format_help())] == []


@pytest.mark.parametrize(
    ("text", "n_tics"),
    [
        ("Of several files, the first counts.", 1),
        ("It reads files. Of these, the first counts.", 1),
        ("the divergence alone", 1),
        ("of course, `alone` is code", 0),
        ("normalised", 1),
        ("normalized", 0),
        ("There are none.", 1),
        ("```\nalone\n```\nfine", 0),
        ("It is no number.", 1),
        ("There is no number, and it is no longer one.", 0),
        ("The shape is that of the logits, which go on.", 2),
        ("A run that goes on beside another, of whose rows it is told.", 4),
        ("The verdict is that the data cannot tell.", 0),
    ],
)
def test_tics_are_found(text, n_tics):
    assert len([*tics_in(text)]) == n_tics


def test_examples_that_need_a_cluster_are_python():
    lines = re.findall(r"^ +(.+  # (?:Ray|Spark|MPI).*)$", tokenloss.LossMeter.__doc__, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        compile(line, "LossMeter", "exec")
