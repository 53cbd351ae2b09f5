#!/usr/bin/env python3
"""Counts the mistakes that the tests notice, among random ones in Python and the ones of tests/c/mutants.toml.

    tests/platforms/mutants.py 200            # 200 random ones in Python, then the table of C and Cython
    tests/platforms/mutants.py 200 --seed 7   # other random ones
    tests/platforms/mutants.py 20 --python    # without the table, each mutant of which is compiled

cosmic-ray changes Python: operators, comparisons, numbers and keywords. A random place is drawn, then one of the
changes there, but none of annotations, which no test could notice. Then the tests of the mutant's package run, such as
tests/scores for src/tokenloss/_scores, and if they pass, all others. If those pass, too, the mutant survives: a test is
missing, or the change makes no difference. Those of the table must not survive the tests that it names.

Needs cosmic-ray, setuptools, Cython and a C compiler; works in copies of the checkout, one for each processor.
"""

import argparse
import ast
import collections
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from tokenloss._core import _core

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "tokenloss"
TABLE = ROOT / "tests" / "c" / "mutants.toml"
ALL = ("tests",)
# `is` in place of `==` makes no difference for None, and the decorators of this package are caches and declarations
LEFT_OUT = re.compile(r"RemoveDecorator|_Is(Not)?_(?!Is)|(?<!Is)(?<!IsNot)_Is(Not)?$")


@dataclass(frozen=True)
class Mutant:
    """A change of a file, and the tests that should notice it."""

    file: Path  # within the checkout
    text: str
    change: str
    tests: tuple[str, ...]
    others: tuple[str, ...] = ()  # that run if these pass


def drawn(number, seed):
    """Random mutants of the Python packages that have tests of their own, each at another place."""
    chance, result = random.Random(seed), {}  # noqa: S311 -- no secret
    files = [file for file in sorted(SOURCES.glob("*/**/*.py")) if (ROOT / tests_of(file)).is_dir()]
    sizes = [file.stat().st_size for file in files]
    while len(result) < number:
        (file,) = chance.choices(files, sizes)
        changes = changes_of(file)
        place = chance.choice(sorted(changes)) if changes else None
        if place and (file, place) not in result:
            text = mutate_code(file.read_text("utf-8"), *chance.choice(changes[place]))
            with contextlib.suppress(SyntaxError):  # say of the * among parameters
                if meaning(text) != meaning(file.read_text("utf-8")):
                    tests, others = (tests_of(file),), (*ALL, f"--ignore={tests_of(file)}")
                    result[file, place] = Mutant(file.relative_to(ROOT), text, difference(file, text), tests, others)
    return list(result.values())


def tests_of(file):
    """The folder of the tests of a file's package."""
    return f"tests/{file.relative_to(SOURCES).parts[0].removeprefix('_')}"


@functools.cache
def changes_of(file):
    """The operators that can change a file and their occurrences, by place."""
    nodes, result = list(ast_nodes(get_ast(file.read_text("utf-8")))), {}
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if not operator.arguments() and not LEFT_OUT.search(name):
            places = (place for node in nodes for place in operator().mutation_positions(node))
            for occurrence, place in enumerate(places):
                result.setdefault(place, []).append((operator(), occurrence))
    return result


def meaning(text):
    """The syntax tree of a text, without annotations."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for field in {"annotation", "returns"} & {*node._fields}:
            setattr(node, field, None)
    return ast.dump(tree)


def difference(file, text):
    """The first line that differs, before and after."""
    pairs = zip(file.read_text("utf-8").splitlines(), text.splitlines(), strict=False)
    line, (before, after) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"line {line}\n    - {before.strip()}\n    + {after.strip()}"


def written():
    """The mutants of the table."""
    for entry in tomllib.loads(TABLE.read_text("utf-8"))["mutants"]:
        file = SOURCES / "_core" / entry["file"]
        text = file.read_text("utf-8").replace(entry["original"], entry["mutated"])
        yield Mutant(file.relative_to(ROOT), text, difference(file, text), tuple(entry["tests"].split()))


LOCAL = threading.local()  # each thread has a copy of the checkout


def copy_checkout(scratch):
    """Copy the checkout for this thread, without what Git ignores, but with the compiled core."""
    LOCAL.folder = Path(tempfile.mkdtemp(dir=scratch), "tokenloss")
    shutil.copytree(
        ROOT, LOCAL.folder, ignore=shutil.ignore_patterns(".git", "build", "__pycache__", "*.so", ".*_cache")
    )
    shutil.copy(_core.__file__, LOCAL.folder / "src" / "tokenloss" / "_core")


def run(command, seconds=None):
    """Whether a command succeeds in this thread's copy, within a number of seconds."""
    # without bytecode: a file of the same size that changes within a second would be taken for the one before
    environment = {**os.environ, "PYTHONPATH": str(LOCAL.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=LOCAL.folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pytest(tests):
    """The command that runs tests up to the first failure; tests in a browser are those of JavaScript."""
    return ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not browser", *tests]


def patience_with(tests):
    """How many seconds tests may take with a mutant, by the time that they take without."""
    start = time.monotonic()
    if not run(pytest(tests)):
        raise SystemExit(f"{' '.join(tests)} fails without a mutant")
    return 60 + 3 * (time.monotonic() - start)


def outcome(mutant, seconds):
    """What became of a mutant: by which tests it was killed, that it survived, or that it could not be built."""
    file = LOCAL.folder / mutant.file
    before = file.read_text("utf-8")
    file.write_text(mutant.text, "utf-8")
    try:
        if file.suffix != ".py" and not run(["setup.py", "-q", "build_ext", "--inplace"]):
            return "could not be built"
        if not run(pytest(mutant.tests), seconds[mutant.tests]):
            return "killed"
        return "killed by others" if mutant.others and not run(pytest(mutant.others), seconds[ALL]) else "survived"
    finally:
        file.write_text(before, "utf-8")


def main():
    """Draw mutants, test them in copies of the checkout, and print which survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", default=200, help="how many to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which to draw (default: %(default)s)")
    parser.add_argument("--python", action="store_true", help="leave out those in C and Cython")
    options = parser.parse_args()
    kinds = {"Python": drawn(options.number, options.seed), "C and Cython": [] if options.python else list(written())}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ThreadPoolExecutor(os.cpu_count(), initializer=copy_checkout, initargs=(scratch,)) as pool,
    ):
        needed = sorted(
            {mutant.tests for mutants in kinds.values() for mutant in mutants} | {ALL for _ in kinds["Python"]}
        )
        seconds = dict(zip(needed, pool.map(patience_with, needed), strict=True))
        for kind, mutants in kinds.items():
            outcomes = collections.Counter()
            for mutant, result in zip(mutants, pool.map(lambda each: outcome(each, seconds), mutants), strict=True):
                outcomes[result] += 1
                if not result.startswith("killed"):
                    print(f"{result}: {mutant.file}, {mutant.change}", flush=True)
            print(f"{kind}: {len(mutants)} mutants", *(f"{n} {result}" for result, n in outcomes.items()), sep=", ")
    return int(outcomes["killed"] < len(mutants))  # those in C and Cython were chosen to be noticed


if __name__ == "__main__":
    sys.exit(main())
