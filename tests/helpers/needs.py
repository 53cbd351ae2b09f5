"""The packages that test files, programs and pages need: what they import, and what programs import that they call."""

import ast
import functools
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pages
from places import ROOT, TESTS

HELPERS = TESTS / "helpers"
OPERATORS = set("|&;()<>")


def installed(name):
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def missing(names):
    """The packages among these that are not installed, in order."""
    return sorted(name for name in names if not installed(name))


@functools.cache
def of_file(path, at_top=False):
    """The packages that a Python file imports, itself or through local files, anywhere or only at its top."""
    needed = of_source(path.read_text("utf-8"), path.parent, at_top)
    # the oracle imports gmpy2 only where long double is no wider than double
    return needed | {"gmpy2"} if path.stem == "reference" and np.finfo(np.longdouble).nmant < 63 else needed


def of_source(source, beside=ROOT, at_top=False):
    """The packages that a text in Python imports; those beside it, helpers and stand-ins count as what they import."""
    if at_top:  # of every file, in every process: a tenth of the time of parsing
        modules = re.findall(r"^(?:import|from) (\w+)", re.sub(r'(?s)""".*?"""', "", source), re.MULTILINE)
    else:
        nodes = [*ast.walk(ast.parse(source))]
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    needed = set()
    for name in {module.partition(".")[0] for module in modules}:
        files = (folder / f"{name}.py" for folder in (beside, HELPERS, pages.STAND_INS))
        file = next(filter(Path.exists, files), None)
        needed |= of_file(file, at_top) if file else {name}
    return needed - sys.stdlib_module_names - {"tokenloss"}


def of_page(page):
    """The packages that the examples of a page need."""
    needed = set()
    for block in pages.blocks_of(page):
        if block.language == "python":
            needed |= of_source(block.text)
        elif block.language in ("console", "sh"):
            needed |= set().union(*(of_command(command) for command, _ in pages.commands_of(block)))
    return needed


def of_command(command):
    """The packages that the programs need that a command of a page runs."""
    words, needed = _words(command), set()
    for before, word in zip(["", *words], words, strict=False):
        if (pages.SHIMS / word).is_file():
            needed |= of_file(pages.SHIMS / word)
        elif word.endswith(".py"):
            needed |= of_file(ROOT / word)
        elif before == "-c":
            needed |= of_source(word)
        elif before == "-m" and "python" in words:
            needed |= of_source(f"import {word}")
    return needed


def programs_of(command):
    """The names of all programs, builtins and keywords of the shell that begin the parts of a command."""
    result, begins = set(), True
    for word in _words(command):
        if OPERATORS & set(word):
            begins = word[-1] not in "<>)"
        elif begins and not re.match(r"\w+=", word):
            result.add(word)
            begins = word in ("if", "then", "do", "!")
    return result


def _words(command):
    """The words and operators of a command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


@functools.cache
def of_extra(extra):
    """The names by which pip knows the packages of an extra, but not the packages that those need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    result = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    for requirement in project["optional-dependencies"][extra]:
        name, _, extras = re.match(r"([\w-]+)(\[([\w,-]+)\])?", requirement).groups()
        extras = set(filter(None, (extras or "").split(",")))
        result |= set().union(*map(of_extra, extras)) if name == "tokenloss" else {name, *extras}
    return result
