"""Sources: openers describe once what files contain, and every public function takes the description."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, check_choice, check_shift
from tokenloss._core.errors import named, raise_error
from tokenloss._core.text import title
from tokenloss._core.validation import check_integer
from tokenloss.formats.tokenizers import tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from tokenloss._core.types import Kind, Need

LEVELS = ("nll", "tops", "sketch", "rows")  # each includes those before it
_NEEDS = {
    "nll": "the loss of each token",
    "tops": "the most likely classes of each token",
    "rows": "all classes of each token",
    "targets": "targets",
    "ids": "the class ids of the tokens",
    "tokenizer": "a tokenizer",
    "plan": "files, all of which are known before the first is read",
    "resume": "a source that can start at any part: files, or a function of the number of the first block",
}


class TokenOptions(NamedTuple):
    """Options that match rows with tokens; a candidate with the defaults takes its base's options."""

    targets: tuple[str, ...] = ()  # one file for each file of scores, or one for all
    segment_ids: tuple[str, ...] = ()
    shift: bool | None = None  # None: not given
    ignore_index: int | None = -100
    window: int = 0  # tokens in each window, if files contain a text window by window; 0 if not
    stride: int = 0  # tokens between the starts of successive windows
    tokenizer: str | None = None  # its file, which is read when needed

    @classmethod
    def checked(cls, shift: Any, ignore_index: Any, tokenizer: Any, **others: Any) -> Self:
        """The options as openers take them; `others` are checked already."""
        check_shift(shift)
        if ignore_index is not None:
            ignore_index = check_integer("ignore_index", ignore_index, "an integer or None")
        path = None if tokenizer is None else as_path("tokenizer", tokenizer)
        return cls(shift=shift, ignore_index=ignore_index, tokenizer=path, **others)

    def absolute(self) -> TokenOptions:
        """The same options with absolute paths, for a process in another directory."""
        targets, segment_ids = (tuple(map(absolute, paths)) for paths in (self.targets, self.segment_ids))
        tokenizer = self.tokenizer and absolute(self.tokenizer)
        return self._replace(targets=targets, segment_ids=segment_ids, tokenizer=tokenizer)


DEFAULT = TokenOptions()


def absolute(path: str) -> str:
    """The absolute path, which a process in another directory can open."""
    return str(Path(path).absolute())


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """The input of `tokenloss.evaluate` and other functions: opened files, or blocks yet to be computed.

    Openers such as `open_scores` return one. It keeps no file open, so it can be pickled and sent to other processes.

    Attributes
    ----------
    level : {"nll", "tops", "sketch", "rows"}
        What it contains for each token: only its loss; also the most likely classes; also some drawn from the others;
        or all classes. Two sources are compared at the highest level that both reach.
    holds : str
        The content in words: "scores", "a sketch", "responses", "log-probabilities", "samples" or "blocks".
    name : str
        Its name in tables and messages.
    paths, files : tuple of str
        The files that contain it; and all files to read, including targets, heads and tokenizers.
    options, token_options : dict, TokenOptions
        The options of the opener; `token_options` are those that match rows with tokens.

    Examples
    --------
    >>> from tokenloss.formats import blocks
    >>> source = blocks([])
    >>> source.level, source.holds
    ('rows', 'blocks')
    """

    __module__ = "tokenloss.formats"

    # class attributes: with annotations they would be fields
    level = "rows"
    holds = ""  # what, in words
    _lacking = MappingProxyType[str, str]({})  # by need: what the source has instead

    paths: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    token_options: TokenOptions = DEFAULT

    def __repr__(self) -> str:
        """The class, the files and their content."""
        files = [Path(path).name for path in self.paths] if len(self.paths) < 2 else [f"{len(self.paths)} files"]
        return f"{type(self).__name__}({', '.join([*files, *filter(None, self._words())])})"

    def _words(self) -> list[str]:
        """Words about the content, for `repr`."""
        return []

    @property
    def name(self) -> str:
        """The name of its files in tables."""
        return title(self.paths)

    @property
    def path(self) -> str:
        """The first of its files."""
        return self.paths[0]

    @property
    def files(self) -> tuple[str, ...]:
        """All files to read."""
        said = self.token_options
        return (*tokenizer_files(said.tokenizer), *self.paths, *said.targets, *said.segment_ids)

    def _lacks(self, need: Need) -> str:
        """The words of an error, after the source's name, for a need that it does not meet; "" if it meets the need."""
        return self._lacking.get(need, "")

    def given(self) -> dict[str, Any]:
        """List the options of the opener.

        Returns
        -------
        dict
            Their values by name, except paths, and the content in words as "source".
        """
        alignment = {name: getattr(self.token_options, name) for name in ("shift", "ignore_index", "window", "stride")}
        return {"source": self.holds, **alignment, **self.options}

    def like(self, paths: Any) -> Self:
        """Open other files with the same options.

        Parameters
        ----------
        paths : path or paths
            The other files.

        Returns
        -------
        Source
            A source of the same class.

        Raises
        ------
        ValueError
            If the source is blocks, which come from no file.
        """
        raise_error("not for", name="like", fits=f"opens files, but this source has {self.holds}")

    def absolute(self) -> Self:
        """Make all paths absolute, for a process in another directory.

        Returns
        -------
        Source
            The same source with absolute paths.
        """
        paths = tuple(map(absolute, self.paths))
        return replace(self, paths=paths, token_options=self.token_options.absolute())


_Source = TypeVar("_Source", bound=Source)


def with_shift(source: _Source, shift: bool | None) -> _Source:
    """The source with the `shift` of a function, unless the opener set it or the tokens are already aligned."""
    check_shift(shift)
    said = source.token_options
    if shift is None or source.level != "rows":
        return source
    if said.shift is not None and bool(shift) != bool(said.shift):
        own = named("shift", bool(said.shift))
        reason = f"if {named('window')} is given" if said.window else f"since {source.name} was opened with {own}"
        raise_error("option", name="shift", got=shift, fits=f"{said.shift}, or left out, {reason}")
    return replace(source, token_options=said._replace(shift=shift))


def require(source: Source, need: Need, by: str) -> None:
    """Refuse an option that needs data which a source lacks; no other function refuses an option by content."""
    if got := source._lacks(need):
        raise_error("lacks", name=source.name, got=got, by=named(by), fits=_NEEDS[need])


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Source):
    """Blocks of logits that are computed one after the other; `blocks` returns them.

    Attributes
    ----------
    source : iterable or function
        The blocks, or the function that makes them.

    Examples
    --------
    >>> from tokenloss.formats import blocks
    >>> blocks([])
    Blocks(list)
    """

    __module__ = "tokenloss.formats"

    level = "rows"
    holds = "blocks"

    source: Any = None

    def _words(self) -> list[str]:
        """The iterable or function that makes the blocks."""
        return ["a function" if callable(self.source) else type(self.source).__name__]

    @property
    def name(self) -> str:
        """The name in messages."""
        return "source"

    def _lacks(self, need: Need) -> str:
        """The words of an error for a need that blocks do not meet."""
        if need == "plan":
            return "is blocks, which are made one by one"
        is_once = need == "resume" and not callable(self.source)
        return "is an iterable, which starts at its first block" if is_once else ""


def made_blocks(source: Blocks, first: int) -> Iterator[Any]:
    """The blocks in the order in which the loop yields them, starting at a number if a function yields them."""
    iterable: Any = source.source
    name, fits = "source", "an iterable of blocks, which is read only once"
    if callable(iterable):
        iterable, name = iterable(first), f"source({first})"
        fits = "an iterable of blocks, of which the first has this number"
    if not hasattr(iterable, "__iter__"):
        raise_error("type", name=name, got=type(iterable).__name__, fits=fits)
    is_empty = True
    for block in iterable:
        is_empty = False
        yield block
    if is_empty:
        raise_error("empty", name=name, fits=fits)


def blocks(
    source: Iterable[tuple[Any, ...]] | Callable[[int], Iterable[tuple[Any, ...]]],
    *,
    kind: Kind | None = None,
    shift: bool | None = None,
    ignore_index: int | None = -100,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Blocks:
    """Describe the blocks that an engine's loop makes.

    Parameters
    ----------
    source : iterable of blocks, or function that makes blocks
        Blocks ``(logits, targets)``, ``(logits, targets, where)`` or ``(logits, targets, where, segment_ids)``, of
        arrays or tensors as in `tokenloss.cross_entropy`. Each of N texts (N, T, V) or images (N, H, W, V) is a
        sequence, and tokens (N, V) are assumed to be independent, unless ``segment_ids`` are given, where a number
        means the same sequence in all blocks. Or a function that takes the number of the first block to make and
        returns an iterable of the blocks from there on, so that `tokenloss.evaluate` can resume from a checkpoint.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores; by default logits.
    shift : bool, optional
        As in `open_scores`. The sequences of a block without ``segment_ids`` end with it.
    ignore_index, tokenizer
        As in `open_scores`.

    Returns
    -------
    Blocks
        A source for `tokenloss.evaluate`. An iterable is read once.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. The blocks themselves are checked as they are made.

    See Also
    --------
    open_scores : The same for files.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> from tokenloss.formats import blocks
    >>> probs = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> round(evaluate(blocks([(probs, [0, 1])], kind="probs")).perplexity, 4)
    1.1785
    """
    check_choice("kind", kind, KINDS)
    said = TokenOptions.checked(shift, ignore_index, tokenizer)
    if not callable(source) and not hasattr(source, "__iter__"):
        raise_error("type", name="source", got=type(source).__name__, fits="blocks, or a function that makes them")
    return Blocks((), {"kind": kind}, said, source)
