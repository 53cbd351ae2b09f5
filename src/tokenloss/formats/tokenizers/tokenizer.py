"""The bytes that the ids of a tokenizer write into a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error, refuse

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Literal, TypeAlias

    from tokenloss._core.types import Array, BoolArray, IntArray

    _Prefix: TypeAlias = Literal["never", "always", "unless there"]


class Vocabulary(NamedTuple):
    """The content of a tokenizer file.

    `pieces` are the bytes by id. `special` ids write nothing by design; the text of `unknown` ids is in no
    file. `prefix` is when the first token of a text begins with a space that the text lacks: "always", or only where
    it does not begin with one itself, "unless there"; the first token after one of `restarts` begins with it again. If
    `drops_spaces`, a text may hold what no token does, such as white space, or tokens what the text lacks. If
    `lacks_special`, there may be special ids beyond those of the file.
    """

    pieces: dict[int, bytes]
    special: frozenset[int] = frozenset()
    unknown: frozenset[int] = frozenset()
    prefix: _Prefix = "never"
    drops_spaces: bool = False
    restarts: frozenset[int] = frozenset()
    lacks_special: bool = False


def check_spaces(pieces: Collection[str]) -> None:
    """Refuse a vocabulary with bytes that lacks ▁, its space: the three bytes of ▁ would make one space."""
    if "▁" not in pieces:
        raise ValueError("it has no piece ▁, so it writes a space as three byte tokens, <0xE2><0x96><0x81>")


class Tokenizer:
    """The bytes that each id of a tokenizer writes, from the tokenizer's file; no text is tokenized."""

    def __init__(self, path: str, said: Vocabulary) -> None:
        size = 1 + max((*said.pieces, *said.special, *said.unknown), default=-1)
        silent = said.special | said.unknown
        self.path: str = path
        self.said: Vocabulary = said  # with the names of special tokens
        self.pieces: list[bytes] = [b"" if i in silent else said.pieces.get(i, b"") for i in range(size)]
        self.n_bytes: IntArray = np.array([*map(len, self.pieces)], np.int64)
        # ids that write nothing by design; after which a text begins anew, with a space that it lacks; whose text no
        # file contains, such as [UNK], and those below the largest that the tokenizer lacks
        self.is_special: BoolArray = np.array([i in said.special for i in range(size)], bool)
        self.restarts: BoolArray = np.array([i in said.restarts for i in range(size)], bool)
        self.unknown: BoolArray = (self.n_bytes == 0) & ~self.is_special
        self.has_prefix_space: bool = said.prefix != "never"  # of a text that lacks it
        self.drops_spaces: bool = said.drops_spaces  # so that bytes are known only with the text
        self._is_added_once = said.prefix == "unless there"
        self._spaces: IntArray = np.array([len(piece) - len(piece.lstrip(b" ")) for piece in self.pieces], np.int64)

    @property
    def range_of_ids(self) -> str:
        """The range of valid ids, for messages."""
        hint = "; its lines have no special ids: tokenizer.json or tokenizer_config.json next to it would name them"
        return f"[0, {len(self.pieces)}), the ids of {self.path}{hint * self.said.lacks_special}"

    def with_special(self, size: int) -> Tokenizer:
        """The tokenizer with at least `size` ids; ids that are added are special, if the file may lack special ids."""
        beyond = range(len(self.pieces), size if self.said.lacks_special else 0)
        return Tokenizer(self.path, self.said._replace(special=self.said.special.union(beyond))) if beyond else self

    def pieces_of(self, ids: Array, is_first: Array) -> list[bytes]:
        """The bytes of tokens in texts, as `lengths` counts them."""
        ids = self.checked(ids, "ids")
        pieces = [self.pieces[i] if i >= 0 else b"" for i in ids.tolist()]
        for i in self.prefixed(ids, is_first).tolist():
            pieces[i] = pieces[i][1:]
        return pieces

    def lengths(self, ids: Array, is_first: Array) -> IntArray:
        """The number of bytes that each token writes into its text.

        `is_first` is True for the first token of each text; the space that this text lacks is taken off its first token
        that writes anything, so that a BOS may come first. Ids below 0 write nothing.
        """
        ids = self.checked(ids, "ids")
        lengths = self.lengths_of(ids)
        lengths[self.prefixed(ids, is_first)] -= 1
        return lengths

    def lengths_of(self, ids: IntArray) -> IntArray:
        """Lengths of the pieces of checked ids."""
        lengths: IntArray = self.n_bytes[np.maximum(ids, 0)] * (ids >= 0)
        return lengths

    def is_open(self, ids: Array, is_first: Array) -> bool:
        """Whether the last text that begins here has written nothing yet, so that the next token is also its first."""
        starts = np.flatnonzero(is_first)
        return bool(len(starts)) and not self.lengths_of(np.asarray(ids)[starts[-1] :]).any()

    def first_writing(self, ids: IntArray, is_first: Array) -> IntArray:
        """Indices of the first token of each text that writes anything."""
        starts, writing = np.flatnonzero(is_first), np.flatnonzero(self.lengths_of(ids))
        places = np.searchsorted(writing, np.append(starts, len(ids)))
        return writing[places[:-1][np.diff(places) > 0]]

    def prefixed(self, ids: IntArray, is_first: Array) -> IntArray:
        """Indices of the tokens that begin with a space that their text lacks."""
        if not self.has_prefix_space:
            return np.empty(0, np.int64)
        first = self.first_writing(ids, is_first)
        spaces = self._spaces[ids[first]]
        if self._is_added_once:  # to a text that begins with none: one that begins with two had both
            is_alone = spaces == self.n_bytes[ids[first]]
            spaces[is_alone] += self._spaces_after(ids, first[is_alone])
        result: IntArray = first[spaces == 1 if self._is_added_once else spaces > 0]
        return result

    def _spaces_after(self, ids: IntArray, indices: IntArray) -> IntArray:
        """The number of spaces at the start of the next token that writes anything, after tokens at these indices."""
        writing = np.flatnonzero(self.lengths_of(ids))
        after: IntArray = np.append(self._spaces[ids[writing]], 0)[np.searchsorted(writing, indices, "right")]
        return after

    def checked(self, ids: Array, name: str, start: int = 0) -> IntArray:
        """The ids as int64; those whose bytes the tokenizer does not know are refused, by the name of their array."""
        ids = np.asarray(ids).astype(np.int64, copy=False)
        beyond = np.flatnonzero(ids >= len(self.pieces))
        if len(beyond):
            i = int(beyond[0])
            raise_error("class", name=name, position=[start + i], got=int(ids[i]), fits=self.range_of_ids)
        unknown = np.flatnonzero(self.unknown[np.maximum(ids, 0)] & (ids >= 0))
        if len(unknown):
            i = int(unknown[0])
            got = f"has no bytes for id {int(ids[i])}, {name}[{start + i}], which marks unknown text or is not a token"
            fits = "have bytes for all ids except negative ones, which are left out"
            refuse(self.path, got, fits)
        return ids
