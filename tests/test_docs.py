"""The documentation: docstrings are as numpydoc asks, their examples run, and so does what README shows."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from numpydoc.docscrape import ClassDoc, get_doc_object
from numpydoc.validate import validate
from places import ROOT

import tokenloss
import tokenloss.dask
from tokenloss import formats, page, plots, results, sinks
from tokenloss._command import cli
from tokenloss._comparison.paired import PairedLosses
from tokenloss._core.result import Result
from tokenloss._statistics.meter import LossFigures

pytestmark = pytest.mark.thread_unsafe(reason="doctest patches the standard library, and numpydoc is not thread-safe")
MODULES = [
    module.name for module in pkgutil.walk_packages(tokenloss.__path__, "tokenloss.") if "__main__" not in module.name
]
NAMED = [
    *(
        getattr(module, name)
        for module in (tokenloss, tokenloss.dask, formats, results, sinks)
        for name in module.__all__
    ),
    *(formats.llama_cpp.write, page.write_page, page.write_comparison_page),
    *(plots.check, plots.draw_candidates, plots.draw_divergences, plots.draw_losses, plots.save),
]
PUBLIC = [thing for thing in NAMED if inspect.isroutine(thing) or inspect.isclass(thing)]
RESULTS = [thing for thing in PUBLIC if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")]
MEMBERS = [
    member.__func__ if isinstance(member, classmethod) else member
    for thing in [*PUBLIC, Result, LossFigures, PairedLosses]
    if inspect.isclass(thing)
    for name, member in vars(thing).items()
    if not name.startswith("_")
    and (inspect.isroutine(member) or isinstance(member, property))
    and not any(name in vars(base) for base in thing.__mro__[1:-1])  # which tells of it
]

CHECKS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["numpydoc_validation"]["checks"]
assert CHECKS[0] == "all"  # but those that follow

README = (ROOT / "README.md").read_text("utf-8")
FIRST_STEPS, CAUSAL = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(OUTPUT,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# GitHub shows these; of a checkout, an sdist has those outside .github alone
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")])


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
    described = [name for entry in ClassDoc(thing)["Attributes"] for name in entry.name.split(", ")]
    fields = thing._fields if hasattr(thing, "_fields") else [field.name for field in dataclasses.fields(thing)]
    assert {name for name in fields if not name.startswith("_")} <= set(described)
    assert len(described) == len(set(described))


@pytest.mark.parametrize("thing", PUBLIC, ids=name_of)
def test_public_names_have_examples_that_run(thing):
    finder = doctest.DocTestFinder()  # testmod leaves out classes whose `__module__` is the public one
    tests = finder.find(thing, name_of(thing), module=False, globs={thing.__name__: thing})
    assert any(test.examples for test in tests)
    runner = doctest.DocTestRunner()
    assert sum(runner.run(test).failed for test in tests) == 0


@pytest.mark.parametrize("thing", [thing for thing in PUBLIC if inspect.isroutine(thing)], ids=name_of)
def test_functions_tell_what_they_raise(thing):
    assert get_doc_object(thing)["Raises"]


def test_readme_is_short():
    assert README.count("\n") <= 150


def test_first_steps_of_the_readme():
    names = {}
    exec(FIRST_STEPS, names)  # noqa: S102 -- code of this repository's README
    numbers = re.findall(r"^(\S.*?)  # (\d+\.\d+)\.\.\.", FIRST_STEPS, re.MULTILINE)
    assert len(numbers) == 3
    for expression, digits in numbers:
        assert str(eval(expression, names)).startswith(digits), expression  # noqa: S307 -- as above


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_model_of_the_readme(side, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers are not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=1.0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()

    def tokenize(texts, *, return_tensors=None, padding=False, truncation=False):
        """Tokens are bytes."""
        if isinstance(texts, str):
            return {"input_ids": list(texts.encode())}
        assert (return_tensors, padding, truncation) == ("pt", True, True)
        longest = max(map(len, texts))
        before = [longest - len(text) if side == "left" else 0 for text in texts]
        rows = [[0] * n + list(text.encode()) for n, text in zip(before, texts, strict=True)]
        rows = [(row + [0] * longest)[:longest] for row in rows]
        return {"input_ids": torch.tensor(rows), "attention_mask": (torch.tensor(rows) > 0).long()}

    def losses_of(text):
        """One text by itself, without padding."""
        ids = torch.tensor([list(text.encode())])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()

    tokenize.eos_token = None
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenize)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: model)
    names = {}
    exec(CAUSAL, names)  # noqa: S102 -- code of this repository's README
    losses = [losses_of(text) for text in names["texts"]]
    mean, count = np.mean(np.concatenate(losses)), sum(map(len, losses))
    clusters = sum((part.sum() - mean * len(part)) ** 2 for part in losses)
    printed = re.findall(r"[\d.]+", capsys.readouterr().out)
    assert int(printed[3]) == count
    assert float(printed[0]) == pytest.approx(np.exp(mean), rel=1e-4)
    assert float(printed[2]) == pytest.approx(np.sqrt(2 * clusters) / count, rel=0.1)
    if side == "right":
        start = len(names["question"]) - 1
        sums = [losses_of(names["question"] + answer)[start:].sum() for answer in names["answers"]]
        np.testing.assert_allclose(names["found"].nll, sums, rtol=1e-5)
        n_bytes = [len(answer) for answer in names["answers"]]
        np.testing.assert_allclose(names["found"].bits_per_byte, sums / np.log(2) / n_bytes, rtol=1e-5)


def test_output_of_the_command_in_the_readme(tmp_path, monkeypatch, capsys):
    command, _, expected = OUTPUT.partition("\n")
    page = tmp_path / "page.html"
    monkeypatch.chdir(ROOT)
    assert cli.main([str(page) if part == page.name else part for part in shlex.split(command)[2:]]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert ("\n".join(lines) + "\n").partition("  time ")[0] == expected.partition("  time ")[0]
    assert lines[-4:] == expected.splitlines()[-4:]
    assert page.exists()


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


def test_examples_that_need_a_cluster_are_python():
    lines = re.findall(r"^ +(.+  # (?:Ray|Spark|MPI).*)$", tokenloss.LossMeter.__doc__, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        compile(line, "LossMeter", "exec")
