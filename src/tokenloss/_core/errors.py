"""Every error that a user sees: the argument, the value given, and what is accepted."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from tokenloss._core.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

# by name of the error: its type, and its message, which names the argument, the value given and what is accepted; an
# {argument} is the name as `named` spells it, and {other} is `got` likewise
_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "device": (TypeError, "{name} is on device {got}; move it to the CPU first"),
    "dlpack": (TypeError, "{name} cannot be read through DLPack: {got}"),
    "array": (TypeError, "{name} is not a numeric array: {got}"),
    "negative view": (TypeError, "{name} has the negative bit set; pass {name}.resolve_neg()"),
    "masked": (TypeError, "{name} is a masked array; pass its data, and where=~mask"),
    "dtype": (TypeError, "{name} has dtype {got}; it must be {fits}"),
    "container": (TypeError, "{name} is a {got}; pass {fits}"),
    "scalar": (ValueError, "{name} is a scalar; it must have a class axis"),
    "axis": (ValueError, "axis is {got}, but {name} has {fits}"),
    "type": (TypeError, "{argument} is {got!r}; it must be {fits}"),
    "shape": (ValueError, "{name} has shape {got}; it must be {fits}"),
    "option": (ValueError, "{argument} is {got!r}; it must be {fits}"),
    "given": (ValueError, "{argument} is given; it must be {fits}"),
    "not for": (ValueError, "{argument} {fits}"),
    "empty": (ValueError, "{argument} is empty; it must be {fits}"),
    "sizes": (
        ValueError,
        "{name} has {got} classes, {base} {fits}; classes={least} compares the first {least} of both",
    ),
    "merge": (ValueError, "evaluations cannot be merged: {got}"),
    "candidates": (ValueError, "there are {got} candidates; results() returns the comparison with each"),
    "sometimes": (ValueError, "{name} must be given in all calls, or in none"),
    "together": (ValueError, "{argument} and {other} cannot be given together"),
    "lacks": (ValueError, "{name} {got}; {by} needs {fits}"),
    "needs tokens": (
        ValueError,
        "{name} needs every token, and {got}; run once with {option}, for the metrics, and once without it, for {name}",
    ),
    "unnormalized": (ValueError, "{name} has a row whose logsumexp is {got:.4g}; {fits}"),
    "sum": (ValueError, "{name} has a row that adds up to {got:.4g}; {fits}"),
    "twice": (ValueError, "{name} lists class {got} twice at one position; each class must come once"),
    "class": (IndexError, "{name}{position} = {got} is out of range {fits}"),
    "changed": (IndexError, "{name}{position} changed during the call and is now out of range {fits}"),
    "score": (ValueError, "{name}{position} = {got:.6g} is not a {fits}"),
    "one-hot": (ValueError, "{name}{position} contains integers that are not one-hot: {got}; {fits}"),
    "read-only": (ValueError, "out is read-only"),
    "overlap": (ValueError, "out overlaps {name}{fits}"),
    "self-overlap": (ValueError, "out has elements that share memory (strides {got})"),
    "file": (ValueError, "{path}: byte {byte}: {got}; it must {fits}"),
    "content": (ValueError, "{path}: {got}; it must {fits}"),
    "record": (ValueError, "{path}: line {line}: {got}; it must {fits}"),
    "unreadable": (ValueError, "{path}: cannot be read: {got}"),
    "missing": (ImportError, "{name} needs the package {got}: pip install {got}"),
}
_MOST_LABELS = 1000  # more classes are a vocabulary, whose ids have a meaning
_MOST_READ = 1 << 16  # targets that are searched for all labels
_NO_LABEL = 255  # marks pixels without a label, as -1 and -100 do
_IS_OURS = re.compile(r"tokenloss(\.(?!_command)|$)")  # modules of this package except those of the command
OPTIONS: ContextVar[Mapping[str, str] | None] = ContextVar("options", default=None)  # by argument, in the command
_LONGEST = 4000  # characters of a message: a name or a list of names in a file may have millions


def raise_error(error: str, **words: object) -> NoReturn:
    """Raise the error of this name; the middle of a very long message is left out."""
    kind, words_of_error = _ERRORS[error]
    argument, other = (named(str(words.get(word))) for word in ("name", "got"))
    message = printable(words_of_error.format(**words, argument=argument, other=other))
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    raise kind(message)


def refuse(path: object, got: str, fits: str) -> NoReturn:
    """Raise an error about the content of a file or folder: what it has, and what it must have or do instead."""
    raise_error("content", path=path, got=got, fits=fits)


def named(name: str, value: Any = None) -> str:
    """Spell an argument as the reader of a message would: ``shift=True`` in Python, ``--shift`` in the command.

    Without a value it is the plain name; with `...` as the value, ``name=`` in Python. A value in capitals, such as
    "FILE", is a placeholder.
    """
    option = (OPTIONS.get() or {}).get(name)
    if value is None:
        return option or name
    is_placeholder = str(value).isupper() and str(value).isalpha()  # which a date with a T is not
    if option is None:
        return f"{name}={'' if value is ... else value if is_placeholder else repr(value)}"
    if value is False:
        return f"--no-{option[2:]}"
    return option if value is True or value is ... else f"{option} {value}"


def worded(python: str, command: str) -> str:
    """The words for users of Python or for users of the command, depending on who reads the message."""
    return python if OPTIONS.get() is None else command


def raise_bad_class(
    name: str, targets: np.ndarray[Any, Any], index: Sequence[int], classes: int, position: Sequence[int] | None = None
) -> NoReturn:
    """Raise the IndexError for a class id out of range, with advice on what to pass if that can be determined.

    `position` is its index in the whole array, if `targets` are a block of that.

    Labels of other numbers, say 1 to C, or -1 and 1, get the code that turns them into ids. It would make a class of a
    mark of what has no label, so wherever there may be one, the option that names it comes in its place.
    """
    fits, got = f"[0, {classes})", int(targets[tuple(index)])
    labels = set(targets.flat[:_MOST_READ].tolist()) if classes <= _MOST_LABELS else set()
    may_be_labels = classes > 1 and len(labels) == classes
    is_alone = may_be_labels and 0 in labels and sum(not 0 <= label < classes for label in labels) == 1
    may_be_mark = got < 0 or got == _NO_LABEL or is_alone
    if classes == 1 and name != "class_ids":
        fits += "; for probabilities of only class 1, pass both classes: np.concatenate([1 - p, p], -1)"
    elif may_be_mark and name != "class_ids":
        fits += f"; if {got} marks positions without a label, give {named('ignore_index', got)}"
    is_sure = not any(label < 0 or label == _NO_LABEL for label in labels) or labels == {-1, 1}
    if may_be_labels and is_sure:
        fits += f"; if these are the labels of all classes, pass {labels_to_ids(name)}"
    raise_error("class", name=name, position=list(index if position is None else position) or "", got=got, fits=fits)


class KindWarning(UserWarning):
    """Warns that scores that are read as logits look like probabilities; losses and divergences would be wrong.

    It is issued if each of the first 8 included rows (of at least two classes) is in [0, 1] and adds up to 1 within
    0.01. An explicit ``kind="logits"`` silences it. Logarithms of probabilities are valid logits. The verdict on any
    gate is then "cannot tell".

    Examples
    --------
    >>> import warnings
    >>> from tokenloss import KindWarning
    >>> warnings.simplefilter("error", KindWarning)  # an error instead of a wrong loss
    """

    __module__ = "tokenloss"


class NormWarning(UserWarning):
    """Warns that hidden states seem to lack the model's final norm, without which their logits are wrong.

    Examples
    --------
    >>> import warnings
    >>> from tokenloss import NormWarning
    >>> warnings.simplefilter("error", NormWarning)
    """

    __module__ = "tokenloss"


class ShiftWarning(UserWarning):
    """Warns that targets seem to be a causal model's own input, which should have been shifted.

    Examples
    --------
    >>> import warnings
    >>> from tokenloss import ShiftWarning
    >>> warnings.simplefilter("error", ShiftWarning)  # an error instead of a wrong perplexity
    """

    __module__ = "tokenloss"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Give a warning with the line of the first caller outside this package, or in its command."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _IS_OURS.match(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(message), category, stacklevel=level)


def labels_to_ids(name: str) -> str:
    """Code that turns labels into class ids."""
    return f"np.unique({name}, return_inverse=True)[1]"


class _Manager(contextlib.AbstractContextManager[Any, "bool | None"]):
    """A context manager that takes itself out of the traceback of an error that it replaces."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        try:
            return self._manager.__exit__(*error)
        finally:
            if error[1] is not None:
                error[1].__traceback__ = error[2]


def contextmanager(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Like contextlib's, but without its reference cycle, which keeps files mapped until it is collected.

    From Python 3.12 on, a traceback holds the callers of its frames: here `__exit__`, which holds the error.
    """
    make = contextlib.contextmanager(function)

    @functools.wraps(function)
    def manager(*args: P.args, **options: P.kwargs) -> AbstractContextManager[T]:
        return _Manager(make(*args, **options))

    return manager


@contextmanager
def naming_options(options: Mapping[str, str] | None) -> Iterator[None]:
    """Make messages name these options, by argument, as in the command; with None they name arguments, as in Python."""
    token = OPTIONS.set(options)
    try:
        yield
    finally:
        OPTIONS.reset(token)


@contextmanager
def with_file_names(*files: str | None) -> Iterator[None]:
    """Put the names of files in front of errors about their arrays."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(printable(f"{', '.join(filter(None, files))}: {error}")) from error
