"""What an evaluation gets: options, settings, and the files that patterns stand for."""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.arguments import as_path
from tokenloss._core.errors import raise_error
from tokenloss._core.files import exists, files_of, identity, links_in
from tokenloss._core.text import printable
from tokenloss._core.validation import check_integer
from tokenloss.formats.lm_head import lm_head_files
from tokenloss.formats.readers import is_scores
from tokenloss.formats.responses import is_responses
from tokenloss.formats.sample_folders import is_samples_folder
from tokenloss.formats.tokenizers import tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    from tokenloss._core.types import IntArray, Kind
    from tokenloss.formats.tokenizers import Tokenizer


NOISE = "noise"  # the name of a second run of the base


class Options(NamedTuple):
    """Options that affect the result of a shard."""

    array: str | None = None
    kind: Kind | None = None
    ignore_index: int | None = -100
    shift: bool | None = None  # None: targets are not shifted, but a sample shows whether they should be
    top: int = 5
    part: Literal["prompt", "generated", "all"] | None = None  # of responses that is read
    skip_failed: bool = False
    lm_head: str | None = None  # FILE[:NAME], the projection of hidden states
    hidden: str | None = None  # name of their array
    targets_array: str | None = None
    logit_scale: float | None = None  # None: what the model's config.json says; so is the next, of which 0 means none
    softcap: float | None = None
    window: int = 0  # tokens of each window, where files hold a text window by window; 0 where they do not
    stride: int = 0  # tokens from the start of a window to that of the next one
    tokenizer: str | None = None  # a hash of what bytes of its tokens depend on
    definitions: Literal["exact", "llama.cpp"] = "exact"  # this and the next four are of comparisons
    divergences: tuple[str, ...] = ()  # beside "kl"
    classes: int | None = None  # number of classes that are compared; None for all
    temperature: float | None = None  # at which drafts are compared; None where others are
    others: tuple[Options, ...] = ()  # of the files of each candidate

    def with_absolute_paths(self) -> Options:
        """The same options for a process in another directory."""
        others = tuple(other.with_absolute_paths() for other in self.others)
        return self._replace(lm_head=self.lm_head and str(Path(self.lm_head).absolute()), others=others)


class Settings(NamedTuple):
    """Options that do not affect the result of a shard."""

    n_bytes: int | IntArray = 0  # of the whole text, or of each sequence
    n_words: int | IntArray = 0
    words: str = "whitespace"
    tokenizer: Tokenizer | None = None  # of which the options hold a hash
    state: str | None = None
    scheduler: str | None = None
    workers: int | None = None
    progress: bool = False
    cost_ratio: float | None = None  # of drafts


class Inputs(NamedTuple):
    """The files that are read; patterns have become paths."""

    scores: list[str]
    targets: list[str]
    segment_ids: list[str]
    text: str | None = None
    lm_head: str | None = None
    tokenizer: str | None = None  # its file

    def by_identity(self) -> dict[object, str]:
        """All files that are read, by `identity`; refuse a file that is given twice."""
        paths = [*self.scores, *self.targets, *self.segment_ids, *filter(None, [self.text])]
        check_different(paths)
        heads = [] if self.lm_head is None else lm_head_files(self.lm_head)  # perhaps in a file of hidden states
        tokenizer = [] if self.tokenizer is None else tokenizer_files(self.tokenizer)
        return by_identity([*tokenizer, *heads, *paths])


def by_identity(paths: Iterable[str], sizes: Mapping[str, Any] | None = None) -> dict[object, str]:
    """Files that are read, the targets of links in their folders, and files whose size is used, by identity."""
    paths = list(paths)
    links = (str(link) for path in paths if Path(path).is_dir() for link in links_in(path))
    sized = (os.fspath(size) for size in (sizes or {}).values() if isinstance(size, str | os.PathLike))
    models = (str(file) for path in sized if exists(path) for file in files_of(path))
    return {identity(path): path for path in (*models, *links, *paths)}


def resolved(patterns: Sequence[str], are_scores: bool = False) -> list[str]:
    """Replace patterns by the paths that match, and directories by their files, in the order of their numbers."""
    paths = []
    for pattern in patterns:
        matches = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = sorted(glob.glob(pattern, recursive=True), key=by_number)
        elif are_scores and Path(pattern).is_dir() and not is_scores(pattern):
            files = _files_in(pattern)
            matches = [*filter(is_scores, files)] or [*filter(is_responses, files)]
            if not matches:
                got, fits = "is a directory without files of scores or of responses", "hold some"
                if not any(Path(pattern).iterdir()):
                    got, fits = "is empty", "hold files of scores, of responses or of samples"
                if is_samples_folder(pattern):
                    got = "holds samples of lm-evaluation-harness"
                    fits = "hold scores or responses; two models' samples are compared: tokenloss compare A B"
                raise_error("content", path=pattern, got=got, fits=fits)
        if not matches:
            raise ValueError(printable(f"{pattern}: matches no file"))
        paths += matches
    return paths


def _files_in(folder: str) -> list[str]:
    """The entries of a folder, in the order of their numbers."""
    return sorted((str(path) for path in Path(folder).iterdir() if path.name[0] != "."), key=by_number)


def is_folder_of_responses(path: str) -> bool:
    """Whether `resolved` would take a folder for that of responses."""
    if not exists(path) or not Path(path).is_dir() or is_scores(path) or is_samples_folder(path):
        return False
    files = _files_in(path)
    return not any(map(is_scores, files)) and any(map(is_responses, files))


def check_different(paths: Sequence[str]) -> None:
    """Refuse a file that is given twice, under whatever names."""
    seen: dict[object, str] = {}
    for path in paths:
        first = seen.get(identity(path))
        if first is not None:
            got = "is given twice" if first == path else f"is given twice, as {first}, too"
            raise_error("content", path=path, got=got, fits="be given once")
        seen[identity(path)] = path


def by_number(path: str) -> tuple[str | int, ...]:
    """Sort key that puts part-2 before part-10."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path)))


def check_order(paths: Sequence[str], targets: Sequence[str], options: Options) -> None:
    """Refuse files that are not in the order of their numbers, if the order matters."""
    misplaced = [_misplaced(paths), _misplaced(targets)]
    if options.shift or (targets and not all(misplaced)):
        for path, following in itertools.chain(*misplaced):
            fits = "come after it; with the pattern in quotes, files are in the order of their numbers"
            raise_error("content", path=path, got=f"comes before {following}", fits=fits)


def _misplaced(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours not in the order of their numbers, if all are in the order of letters, as a shell sorts them."""
    return [
        (path, following)
        for path, following in itertools.pairwise(paths if list(paths) == sorted(paths) else ())
        if by_number(path) > by_number(following) and by_number(path)[::2] == by_number(following)[::2]
    ]


def single(name: str, paths: list[str]) -> str:
    """The one file of a model."""
    if len(paths) > 1:
        fits = "one file, where files hold responses or samples"
        raise_error("option", name=name, got=f"{len(paths)} paths", fits=fits)
    return paths[0]


def checked_sizes(sizes: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Size of each candidate's model in bytes, where it is given."""
    for name in sizes:
        if name not in names:
            raise_error("option", name="a name of sizes", got=name, fits=f"that of a candidate: {', '.join(names)}")
    return {name: _size(name, value) for name, value in sizes.items()}


def _size(name: str, value: Any) -> int:
    """Bytes of a model, which is given as a number, a file, a directory, or a number with a unit."""
    word = f"sizes[{name!r}]"
    if hasattr(value, "__index__"):
        size: int = check_integer(word, value, "an integer of at least 0", least=0)
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
