"""The options of a run that change its results, and the settings that do not."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.arguments import as_path
from tokenloss._core.errors import raise_error, refuse, worded
from tokenloss._core.files import exists, files_of, identity, links_in
from tokenloss._core.validation import check_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Literal, Self

    from tokenloss.formats.sources import TokenOptions

_TEXT_BYTES = 1 << 20  # of a text are read at a time


class Options(NamedTuple):
    """Options that change the result of a shard or a block, except the options of its files."""

    ignore_index: int | None = -100
    shift: bool | None = None  # None: targets are not shifted, but a sample shows whether they should be
    window: int = 0  # tokens of each window, where files hold a text window by window; 0 where they do not
    stride: int = 0  # tokens from the start of a window to that of the next one
    top: int = 5
    by: str | None = None  # what groups tokens
    calibration: bool = False
    tokenizer: str | None = None  # a hash of what bytes of its tokens depend on
    definitions: Literal["exact", "llama.cpp"] = "exact"  # this and the next three are of comparisons
    divergences: tuple[str, ...] = ()  # beside "kl"
    # number of classes that are compared; None for all, which must be as many, "all" for those of any model
    classes: int | Literal["all"] | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, said: TokenOptions, **others: Any) -> Self:
        """The options of a source and of a function."""
        return cls(said.ignore_index, said.shift, said.window, said.stride, **others)

    def n_classes(self, size: int) -> int:
        """The number of compared classes, for models with this many."""
        return min(self.classes, size) if isinstance(self.classes, int) else size


def by_identity(paths: Iterable[str], sizes: Mapping[str, Any] | None = None) -> dict[object, str]:
    """Files that are read, the targets of links in their folders, and files whose size is used, by identity."""
    paths = list(paths)
    links = (str(link) for path in paths if Path(path).is_dir() for link in links_in(path))
    sized = (os.fspath(size) for size in (sizes or {}).values() if isinstance(size, str | os.PathLike))
    models = (str(file) for path in sized if exists(path) for file in files_of(path))
    return {identity(path): path for path in (*models, *links, *paths)}


def checked_sizes(sizes: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Size of each candidate's model in bytes, if given."""
    for name in sizes:
        if name not in names:
            raise_error("option", name="a name of sizes", got=name, fits=f"the name of a candidate: {', '.join(names)}")
    return {name: _size(name, value) for name, value in sizes.items()}


def _size(name: str, value: Any) -> int:
    """Bytes of a model, which is given as a number, a file, a directory, or a number with a unit."""
    word = worded(f"sizes[{name!r}]", f"--size {name}")
    if hasattr(value, "__index__"):
        size: int = check_integer(word, value, "an integer >= 0", least=0)
        return size
    path = as_path(word, value)
    if exists(path):
        return sum(file.stat().st_size for file in files_of(path))
    number = re.fullmatch(r"([0-9]{1,20}\.?[0-9]*) ?(?:([KMGT])(i?))?B?", path, re.IGNORECASE)
    if number is None:
        raise_error("option", name=word, got=path, fits="a file, a directory, or a number of bytes such as 4.9G")
    units: dict[str, int] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
    factor = (1024.0 if number[3] else 1000.0) ** units[(number[2] or "").upper()]
    return round(float(number[1]) * factor)


def _count_by_whitespace(text: str, continues: bool) -> int:
    """Number of words that begin in a piece of a text; `continues` if a word continues from the piece before."""
    return len(text.split()) - (continues and not text[0].isspace())


def _count_as_lm_eval(text: str, continues: bool) -> int:
    """Number of runs of white space that begin in a piece: one less than the parts that `re.split` makes."""
    return len(re.findall(r"\s+", text)) - (not continues and text[0].isspace())


# functions that count words, and what is added to the count of a whole text
WORDS: dict[str, tuple[Callable[[str, bool], int], int]] = {
    "whitespace": (_count_by_whitespace, 0),
    "lm-eval": (_count_as_lm_eval, 1),
}


def text_length(path: str, words: str = "whitespace") -> tuple[int, int]:
    """Number of bytes and of words of a text."""
    count, n_words = WORDS[words]
    n_bytes = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends_inside_word = count is _count_as_lm_eval  # white space at the start of a text splits it, too
    with Path(path).open("rb") as file:  # may be a pipe, whose length is not known
        if stat.S_ISCHR(mode := os.fstat(file.fileno()).st_mode) or stat.S_ISBLK(mode):
            refuse(path, "is a device, which may never end", "be a file or a pipe")
        while True:
            data = file.read(_TEXT_BYTES)
            text = decoder.decode(data, final=not data)
            n_bytes += len(data)
            if text:
                n_words += count(text, ends_inside_word)
                ends_inside_word = not text[-1].isspace()
            if not data:
                break
    if not n_bytes:
        refuse(path, "is empty", "contain a text")
    return n_bytes, n_words
