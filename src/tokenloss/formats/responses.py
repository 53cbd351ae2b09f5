"""Responses of inference servers: JSON that holds the log-probabilities of tokens, of the prompt or generated."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._errors import raise_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from tokenloss._types import Array, BoolArray, Float64Array, IntArray

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
PARTS_OF_RESPONSE = ("prompt", "generated", "all")  # parts of a response


@dataclass(frozen=True, eq=False, repr=False)
class Response:
    """A sequence of tokens and their log-probabilities as a server returned them: a choice of a response.

    Attributes
    ----------
    line : int
        Line of the file, from 1; of a file that holds a list, the number of the element.
    choice : int
        Number of the choice in its response, from 0.
    custom_id : str or None
        What a batch file calls the request.
    tokens : array of object
        Text of each token; None where the server gave none.
    n_bytes : array of int64
        Length of each token's text in UTF-8; -1 where it is not known, as of a part of a character.
    ids : array of int64
        Class id of each token; -1 where it is not known.
    logprobs : array of float64
        Log-probability of each token in nats, as the server rounded it; nan where the server gave no number, as for the
        first token of a prompt, and for a sentinel.
    is_sentinel : array of bool
        Whether the server wrote -9999.0, which stands for "below what is returned", or for -inf.
    is_prompt : array of bool
        Whether the token is of the prompt; the others were generated.
    rank : array of int64
        1 + number of other classes whose log-probability is >= the token's; 0 where it is not known.
    is_greedy : array of bool
        Whether no class is more likely than the token; of a tie that ids can break, whether its id is the lowest.
    is_greedy_known : array of bool
        Whether the server returned enough to tell.
    top_tokens, top_ids, top_logprobs : arrays of shape (n, k)
        Text, ids and log-probabilities of the most likely classes, in descending order; None, -1 and nan where the
        server listed fewer, gave no text or no ids. The token itself is among them only if it is that likely.
    lost_tops : int
        Number of positions whose list is shorter than the others', because classes of the same text fell together.
    """

    line: int
    choice: int
    custom_id: str | None
    tokens: Array
    n_bytes: IntArray
    ids: IntArray
    logprobs: Float64Array
    is_sentinel: BoolArray
    is_prompt: BoolArray
    rank: IntArray
    is_greedy: BoolArray
    is_greedy_known: BoolArray
    top_tokens: Array
    top_ids: IntArray
    top_logprobs: Float64Array
    lost_tops: int = 0

    def __repr__(self) -> str:
        """Show what it is of."""
        known = int(np.count_nonzero(~np.isnan(self.logprobs)))
        return f"Response(line={self.line}, choice={self.choice}, tokens={len(self.ids)}, with_number={known})"


class Failed(NamedTuple):
    """A line of a batch that failed, and was skipped."""

    line: int
    custom_id: str | None
    reason: str


@dataclass(eq=False)
class ResponsesFile:
    """A file of responses, to be iterated over: it yields each sequence, a `Response`, in the order of the file.

    Attributes
    ----------
    path : str
        The file.
    part : {"prompt", "generated", "all"}
        The part of each response that is yielded.
    skip_failed : bool
        Whether failed lines are left out, rather than an error.
    failed : list of Failed
        Failed lines that the iteration has left out so far.
    """

    path: str
    part: Literal["prompt", "generated", "all"]
    skip_failed: bool = False
    failed: list[Failed] = field(default_factory=list)

    def __iter__(self) -> Iterator[Response]:
        """Read the file from its start."""
        self.failed.clear()
        raise NotImplementedError


def is_responses(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of responses, by its name."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def open_responses(
    path: str | os.PathLike[str],
    *,
    part: Literal["prompt", "generated", "all"] | None = None,
    skip_failed: bool = False,
) -> ResponsesFile:
    """Open a file of responses of an inference server."""
    if part is not None and part not in PARTS_OF_RESPONSE:
        raise_error("option", name="part", got=part, fits=", ".join(map(repr, PARTS_OF_RESPONSE)))
    return ResponsesFile(os.fspath(path), part or "prompt", skip_failed)
