"""How the command reads its arguments: help of groups and examples, near misses, and types of values."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import re
import reprlib
import shutil
import sys
import textwrap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokenloss._command.commands import InputError
from tokenloss._core.files import exists

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

_WIDTH = 100  # columns of help on a wide terminal
_NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
_HELP_COLUMN = 26  # where the words about an option begin, unless its name is longer


class _Formatter(argparse.HelpFormatter):
    """Help of at most `_WIDTH` columns, which keeps paragraphs apart and does not break words at hyphens."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns - 2, _WIDTH)
        super().__init__(prog, max_help_position=_HELP_COLUMN, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap each paragraph; lines that begin with a blank stay as they are."""
        paragraphs = (
            paragraph if paragraph.startswith(" ") else "\n".join(self._split_lines(paragraph, width))
            for paragraph in text.strip("\n").split("\n\n")
        )
        return "\n\n".join(textwrap.indent(paragraph, indent) for paragraph in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap the help of an option."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


class NoArgumentsError(Exception):
    """A required argument is missing; the message is the help."""


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, and suggests alternatives for an unknown word.

    Options are not abbreviated, so that a script means the same when there is a new option.
    """

    commands: Mapping[str, Parser] = MappingProxyType({})  # all commands, by name
    files: argparse.Action | None = None  # what must be given; files may be on both sides of an option

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, add_help=False, allow_abbrev=False, formatter_class=_Formatter)

    def options(self) -> dict[str, str]:
        """The option, or the word in the usage, of each argument of all commands."""
        commands: Any = self.files and self.files.choices
        actions = [action for command in commands.values() for action in command._actions]
        return {one.dest: one.option_strings[0] if one.option_strings else one.metavar for one in reversed(actions)}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; refuse unknown ones, and suggest others."""
        if not (sys.argv[1:] if args is None else args) and self.files is not None:
            raise NoArgumentsError(self.format_help())
        known, left = super().parse_known_args(args, namespace)
        options = [text for text in left if text.startswith("-")]
        if options:
            self.error(f"there is no option {options[0]}{self._nearest_option(options[0])}")
        if left:
            self._add_files(known, left)
        return known, []

    def _add_files(self, namespace: argparse.Namespace, texts: list[str]) -> None:
        """Add files that come after an option to those before it."""
        if self.files is None:
            self.error(f"{texts[0]} is given; nothing fits here but options")
        try:
            more = self._get_values(self.files, texts)
        except argparse.ArgumentError as error:
            self.error(str(error))
        setattr(namespace, self.files.dest, [*getattr(namespace, self.files.dest), *more])

    def _nearest_option(self, text: str) -> str:
        """The suggested option: one of another command, or with this value, or with a similar name; "" if none fits."""
        word = text.partition("=")[0].lstrip("-")
        for command in self.commands.values():
            if text.startswith("--") and f"--{word}" in command._option_string_actions:
                return f"; it is an option of {command.prog}"
        names = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        chosen = [one for one in self._actions if one.option_strings and word in (one.choices or ())]
        near = [f"{one.option_strings[0]} {word}" for one in chosen]
        near += [f"--{name}" for name in names if word and name.startswith(word)]
        near += [f"--{name}" for name in difflib.get_close_matches(word, names, 1)]
        return f"; did you mean {near[0]}?" if near else f"; {self.prog} --help lists all"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice of an option, or no command."""
        choices = list(action.choices or [value])
        if value in choices:
            return
        near = difflib.get_close_matches(value, choices, 1)
        if action.nargs == argparse.PARSER:  # of commands
            near += [f"{self.prog} --{value}"] * (f"--{value}" in self._option_string_actions)
            near += [f"{self.prog} score {value}"] * exists(value)
        fits = f"{', '.join(choices[:-1])} or {choices[-1]}"
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentError(action, f"must be {fits}, not {reprlib.repr(value)}{hint}")

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)  # here, a closed pipe is still handled
        super().exit(status, message)


# -- types of values ---------------------------------------------------------------------------------------------------


class Names(argparse.Action):
    """Names separated by commas, from every use of the option, in place of the default."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        names = [name.strip() for name in values.split(",")]
        setattr(namespace, self.dest, (*(() if before is self.default else before), *names))


class Completion(argparse.Action):
    """Print the script that completes the command in a shell, and end."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"{option} needs the package shtab: pip install 'tokenloss[cli]'")
        parser.files.help = None  # shtab leaves out what is not shown
        for command in parser.files.choices.values():
            for one in command._actions:
                if re.search("FILE|DIR|OUT|BASE|OTHER|TWIN", str(one.metavar)):
                    one.complete = shtab.FILE
        print(shtab.complete(parser, values))
        parser.exit()


def filled(text: str) -> str:
    """Argument type of nonempty text; an unset shell variable makes it empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; it must be a name")
    return text


def integer(least: int, most: int = 2**63 - 1, or_else: int | str | None = None) -> Callable[[str], int | str]:
    """Argument type of integers from `least` to `most`, or equal to `or_else`."""

    def read(text: str) -> int | str:
        if text == or_else:
            return text
        with contextlib.suppress(ValueError):  # more digits than Python converts
            if re.fullmatch("[-+]?[0-9]+", text) and (least <= int(text) <= most or int(text) == or_else):
                return int(text)
        is_large = text.isdecimal() and (len(text) > len(str(most)) or int(text) > most)
        fits = f"<= {most}" if is_large else f">= {least}"
        fits += "" if or_else is None else f", or {or_else}"
        raise argparse.ArgumentTypeError(f"must be an integer {fits}, not {reprlib.repr(text)}")

    return read


def number(text: str) -> float:
    """Argument type of finite numbers in digits, without the 1_0, nan, inf and blanks that Python accepts."""
    if not re.fullmatch(_NUMBER, text) or math.isinf(float(text)):
        raise argparse.ArgumentTypeError(f"must be a number, not {reprlib.repr(text)}")
    return float(text)


def limit_at_fraction(text: str) -> tuple[float, float]:
    """Argument type of FRACTION=NUMBER."""
    name, _, value = text.partition("=")
    try:
        return fraction(name), number(value)
    except argparse.ArgumentTypeError:
        fits = "must be F=X, with F between 0 and 1, such as 0.99=0.3"
        raise argparse.ArgumentTypeError(f"{fits}, not {reprlib.repr(text)}") from None


def fraction(text: str) -> float:
    """Argument type of numbers between 0 and 1, both excluded."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {reprlib.repr(text)}")
    return value
