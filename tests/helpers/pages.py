"""Pages of the documentation, whose examples run as a reader would run them.

A page is Markdown with blocks of three kinds, which run in their order, in a folder that holds copies of `tests/data`
and `benchmarks/examples`:

- `python` blocks share their names. What one prints is shown in the `text` block that follows it, or line by line in
  comments after `print(...)`, or it prints nothing.
- `console` blocks have commands, after `$ `, and below each what it prints. A backslash continues a line.
- `sh` blocks have commands whose output is not shown.

Blocks of other languages, such as `bash`, which installs, do not run.

In output that is shown, `...` stands for anything, and a number may differ by two units of its last digit: engines add
up in float32, in an order that depends on the machine. Rows of times, which only slow runs have, and progress bars,
which return to the start of their line, are not compared. The signature below tables may be left out, and its version
may be an older one.
"""

import contextlib
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

from tokenloss._command import cli

DOCS = ROOT / ".github" / "docs"
SHIMS = ROOT / "tests" / "helpers" / "shims"  # commands that stand in for those that cannot be installed
STAND_INS = ROOT / "tests" / "helpers" / "stand_ins"  # and modules
BLOCKS = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"  time  .*/s")  # a row of a table
SHOWS_STATUS = "; echo $?"
SIGNATURE = re.compile(r"\n\n {2}(tokenloss:[^|\s]+)(\|unit:\S+)")  # below tables
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its text, and the line on which it begins."""

    language: str
    text: str
    line: int


@contextlib.contextmanager
def stand_ins():
    """Meanwhile, modules can be imported that stand in for others, whether these are installed or not."""
    before = {name: sys.modules.pop(name) for name in _stood_in()}
    sys.path.insert(0, str(STAND_INS))
    try:
        yield
    finally:
        sys.path.remove(str(STAND_INS))
        for name in _stood_in():
            del sys.modules[name]
        sys.modules.update(before)


def _stood_in():
    """The modules that are imported, and have the names of stand-ins or lie in those of their packages."""
    names = {path.stem for path in STAND_INS.iterdir()}
    return [name for name in sys.modules if name.partition(".")[0] in names]


def blocks_of(page):
    """The blocks of a page, in their order."""
    text = page.read_text("utf-8")
    return [Block(m["language"], m["text"], text.count("\n", 0, m.start()) + 1) for m in BLOCKS.finditer(text)]


def prepare(folder):
    """Copy what examples may read into the folder in which they run."""
    shutil.copytree(ROOT / "tests" / "data", folder / "tests" / "data")
    shutil.copytree(ROOT / "benchmarks" / "examples", folder / "benchmarks" / "examples")


@stand_ins()
def run(page):
    """Run the examples of a page in the current folder; an AssertionError names the line whose output differs."""
    names = {"__name__": "__main__"}
    for block, following in itertools.pairwise([*blocks_of(page), Block("", "", 0)]):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            _, printed, _ = _captured(exec, code, names)
            comments = re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE)
            shown = following.text if following.language == "text" else "\n".join(comments)
            assert agrees(shown, printed), f"{where} prints\n{printed}\nand shows\n{shown}"
        elif block.language in ("console", "sh"):
            for command, shown in commands_of(block):
                status, printed = call(command)
                assert status == 0 or "error: " in shown, f"{where}: {command} ends with {status} and\n{printed}"
                if block.language == "console":
                    assert agrees(shown, printed), f"{where}: {command} prints\n{printed}\nand shows\n{shown}"


def commands_of(block):
    """The commands of a block, each with the output that is shown below it."""
    if block.language == "sh":
        text = block.text.replace("\\\n", " ")
        return [(line, "") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.MULTILINE)
    assert not parts[0].strip(), f"output without a command: {parts[0]}"
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts[1:])]


def call(command):
    """The exit status of a command, and what it prints; tokenloss and programs in Python run in this process."""
    if command.endswith(SHOWS_STATUS):
        status, printed = call(command.removesuffix(SHOWS_STATUS))
        return 0, f"{printed}{status}\n"
    if stored := re.fullmatch(r"(python [^|<>;&$`(]+) > (\S+)", command):
        status, printed = call(stored[1])
        Path(stored[2]).write_text(printed, "utf-8")
        return status, ""
    name, *arguments = shlex.split(command, comments=True)
    plain = not re.search(r"[|<>;&$`(]", command)
    if plain and name == "tokenloss":
        return _captured(_run_command, arguments, apart=False)[:2]
    if plain and name == "python" and arguments[0].endswith(".py"):
        status, out, errors = _captured(_run_program, arguments)
        return status, out + (errors if status else "")  # warnings of other libraries are not compared
    path = f"{SHIMS}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONUTF8": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment,
        timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def agrees(shown, printed):
    """Whether an output is the one that is shown, where numbers may differ by two units of their last digit."""
    if not SIGNATURE.search(shown):
        printed = SIGNATURE.sub("", printed)
    shown, printed = (SIGNATURE.sub(r"\n\n  signature\2", text) for text in (shown, printed))
    parts = re.split(rf"({NUMBER.pattern}|\.\.\.)", _stripped(shown))  # every second one is a number or dots
    numbers = [part for part in parts[1::2] if part != "..."]
    result = re.fullmatch("".join(map(_pattern, parts)), _stripped(printed), re.DOTALL)
    return result is not None and all(map(_near, numbers, result.groups()))


def _pattern(part):
    """The regular expression of a part of an output: dots, a number, or a text as it is."""
    if part == "...":
        return ".*?"
    return f"({NUMBER.pattern})" if NUMBER.fullmatch(part) else re.escape(part)


def _near(shown, printed):
    """Whether two numbers are equal, or differ by at most two units of the last digit that is shown."""
    if shown == printed:
        return True
    if not set(".e") & set(shown):
        return False  # a count
    digits, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(shown.replace(",", "")) - float(printed.replace(",", ""))) <= 2.01 * unit


def _stripped(text):
    """The lines without blanks at their ends, rows of times, progress bars, and empty lines around them."""
    lines = (line.rstrip() for line in text.split("\n") if "\r" not in line and not TIME.fullmatch(line))
    return "\n".join(lines).strip("\n")


def _run_command(arguments):
    """Run `tokenloss` with its arguments; its exit status."""
    try:
        return cli.main(arguments)
    except SystemExit as error:  # of --help and --version
        return error.code or 0


def _run_program(arguments):
    """Run a program with its arguments; its exit status."""
    before, sys.argv = sys.argv, arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    finally:
        sys.argv = before
    return 0


def _captured(function, *arguments, apart=True):
    """What a function returns, what it prints, and what it writes to stderr, if that is kept apart."""
    out = io.StringIO()
    errors = io.StringIO() if apart else out
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        result = function(*arguments)
    return result, out.getvalue(), errors.getvalue()
