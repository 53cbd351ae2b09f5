"""Responses of inference servers: JSON with log-probabilities of tokens, of the prompt or generated."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._core.arguments import check_choice
from tokenloss._core.errors import named, refuse
from tokenloss.formats.readers import check_different, located
from tokenloss.formats.records import Place, label_of
from tokenloss.formats.responses.columns import columns, join, n_uncovered_bytes
from tokenloss.formats.responses.dialects import failure, proves_own_first, read
from tokenloss.formats.responses.streams import read_responses
from tokenloss.formats.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Literal, NoReturn

    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss.formats.responses.columns import Listed
    from tokenloss.formats.responses.dialects import Choice

PARTS_OF_RESPONSE = ("prompt", "generated", "all")  # parts of a response


@dataclass(frozen=True, eq=False, repr=False)
class Response:
    """A sequence of tokens and their log-probabilities as a server returned them: a choice of a response.

    Attributes
    ----------
    line, choice : int
        Line of the file where the response begins, from 1; and number of the choice in its response, from 0.
    custom_id : str or None
        What a batch file calls the request.
    tokens : array of object
        Text of each token; None where the server gave none. It may be empty or U+FFFD for a part of a character.
    n_bytes : array of int64
        Length of each token's text in UTF-8; -1 if unknown, as for a part of a character, and 0 for an end of
        text, such as ``<|im_end|>``, that the response's own text does not hold.
    ids : array of int64
        Class id of each token; -1 if unknown.
    logprobs : array of float64
        Log-probability of each token in nats, as the server rounded it; nan where the server gave no number, as for the
        first token of a prompt, and for a sentinel.
    is_sentinel : array of bool
        Whether the server wrote -9999.0, or the least float32 as llama.cpp does, which stands for "below what is
        returned", or for -inf.
    is_prompt : array of bool
        Whether the token is of the prompt; the others were generated.
    rank : array of int64
        1 + number of other classes whose log-probability is >= the token's, as the server counted it or among those
        that it listed; -1 where it is not known, also for the last one listed, since others may be as likely.
    is_greedy, is_greedy_known : arrays of bool
        Whether no class is more likely than the token; of a tie that ids can break, whether its id is the lowest. And
        whether the server returned enough to determine this.
    top_tokens, top_ids, top_logprobs : arrays of shape (n, k)
        Text, ids and log-probabilities of the most likely classes, in descending order, none of them left out; None, -1
        and nan where the server listed fewer, gave no text or no ids. The token itself is among them only if it is that
        likely.
    asked_ids, asked_logprobs : arrays of shape (n, m), or None
        Ids and log-probabilities of the classes that a request to SGLang asked for (``token_ids_logprob``), in their
        order; -1 and nan where there are fewer.
    n_short_lists : int
        Number of positions whose list may have lost classes, since those of the same text, above all parts of
        characters, fall together where a list is an object by text. These positions have no most likely classes.
    n_uncovered_bytes : int
        Number of bytes of the response's text that are in no token that the server listed, as far as known.
    mask : array of bool or None
        The mask of tokens that count, for log-probabilities that come with one.
    label : int, str, list or None
        The label of the field by which tokens are grouped, or a list of one for each token.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss.formats import open_responses
    >>> lists = {"tokens": ["A", " b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {" b": -0.5, " c": -2}]}
    >>> counts = {"prompt_tokens": 2, "completion_tokens": 0}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "responses.json"
    >>> _ = path.write_text(json.dumps({"choices": [{"text": "A b", "logprobs": lists}], "usage": counts}))
    >>> [response] = open_responses(path)
    >>> response
    Response(line=1, choice=0, tokens=2, with_number=1)
    >>> response.n_bytes, response.is_greedy, response.top_tokens[1]
    (array([1, 2]), array([False,  True]), array([' b', ' c'], dtype=object))
    """

    __module__ = "tokenloss.formats"

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
    n_short_lists: int = 0
    n_uncovered_bytes: int = 0
    mask: BoolArray | None = None
    label: Any = None
    asked_ids: IntArray | None = None
    asked_logprobs: Float64Array | None = None

    def __repr__(self) -> str:
        """Show what it belongs to."""
        known = int(np.count_nonzero(~np.isnan(self.logprobs)))
        return f"Response(line={self.line}, choice={self.choice}, tokens={len(self.ids)}, with_number={known})"


def response_of(
    line: int, name: str | None, choice: int, logprobs: Float64Array, mask: BoolArray | None = None, label: Any = None
) -> Response:
    """A response with only the log-probabilities of its tokens."""
    n = len(logprobs)
    text, none, no = np.full(n, None), np.full(n, -1), np.zeros(n, np.bool_)
    tops = np.empty((n, 0), np.object_), np.empty((n, 0), np.int64), np.empty((n, 0))
    return Response(line, choice, name, text, none, none, logprobs, no, no, none, no, no, *tops, mask=mask, label=label)


class Failed(NamedTuple):
    """A line of a batch that failed, and was skipped."""

    line: int
    custom_id: str | None
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Responses(Source):
    """Files of responses, which `open_responses` returns: iterating yields each sequence as a `Response`, in order.

    Attributes
    ----------
    part : {"prompt", "generated", "all"}
        The part of each response that is yielded.
    failed : list of Failed
        Failed lines that the iteration has left out so far.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss.formats import open_responses
    >>> answer = {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.25}]}}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "batch.json"
    >>> _ = path.write_text(json.dumps([{"choices": [answer]}, {"error": {"message": "too long"}}]))
    >>> responses = open_responses(path, skip_failed=True)
    >>> len([*responses]), responses.failed
    (1, [Failed(line=1, custom_id=None, reason='too long')])
    """

    __module__ = "tokenloss.formats"

    level = "tops"
    holds = "responses"
    _lacking = MappingProxyType({
        "rows": "gives only the most likely classes",
        "ids": "gives the text of tokens, and counts their bytes itself",
        "tokenizer": "needs none, since servers return the text of tokens",
    })  # fmt: skip

    part: Literal["prompt", "generated", "all"] = "generated"
    failed: list[Failed] = field(default_factory=list)
    _dialects: tuple[str, ...] = ()  # of each file; "" if all its lines failed
    _is_one_of_several: bool = False  # some of which may lack a log-probability
    _field: str | None = None  # whose labels group tokens

    def _words(self) -> list[str]:
        """Layout and part."""
        return [self.dialect or "all lines failed", self.part]

    @property
    def dialect(self) -> str:
        """Layout of the responses; "" if all lines failed.

        It is "completions" or "chat" (OpenAI, vLLM and others), "tokens" (vLLM), "SGLang" or "llama.cpp".
        """
        return ", ".join(dict.fromkeys(filter(None, self._dialects)))

    def like(self, paths: Any) -> Responses:
        """Open other files with the same options."""
        return open_responses(paths, **self.options)

    def __iter__(self) -> Iterator[Response]:
        """Read the files from the start of the first."""
        self.failed.clear()
        for path, dialect in zip(self.paths, self._dialects, strict=True):
            yield from self._read(path, dialect)

    def _read(self, path: str, expected: str) -> Iterator[Response]:
        """The sequences of a file, whose responses must have the expected layout."""
        has_number = has_failed = False
        has_prompts: bool | None = None
        for place, custom_id, body, reason, value in _bodies(path):
            if reason and not self.options["skip_failed"]:
                request = "the request" if custom_id is None else f"request {custom_id!r}"
                fits = f"have succeeded, or be left out ({named('skip_failed', True)})"
                place.refuse(f"{request} failed: {reason.rstrip('.')}", fits)
            if reason:
                has_failed = True
                self.failed.append(Failed(place.line, custom_id, reason))
                continue
            dialect, choices = read(body, place)
            if dialect != expected:
                place.refuse(f"it has the layout {dialect}", f"have the layout {expected}, like those before it")
            label = self._field and label_of((value, body), self._field, place)
            for choice in choices:
                parts = self._chosen(choice, place)
                if not parts:
                    continue
                if self.part == "all" and not choice.is_repeated:
                    has_prompts = _check_prompt(choice, has_prompts, place)
                has_number = has_number or any(tokens.has_number() for _, tokens in parts)
                arrays: Any = join([columns(tokens, is_prompt=name != "generated") for name, tokens in parts])
                n_short_lists = int(np.count_nonzero(arrays.pop("is_lost")))
                n_uncovered = n_uncovered_bytes([*choice.parts.values()])
                yield Response(
                    place.line, choice.number, custom_id, **arrays, n_short_lists=n_short_lists,
                    n_uncovered_bytes=n_uncovered, label=label,
                )  # fmt: skip
        if not (has_number or has_failed or self._is_one_of_several or len(self.paths) > 1):
            refuse_without_number(path, self.part)

    def _chosen(self, choice: Choice, place: Place) -> list[tuple[str, Listed]]:
        """The parts of a choice that are yielded, without a prompt that repeats the one of the choice before it."""
        parts = {name: tokens for name, tokens in choice.parts.items() if len(tokens)}
        prompt = parts.get("prompt")
        if "all" in parts and self.part != "all":
            fits = f"come with prompt_token_ids or usage, or be read whole ({named('part', 'all')})"
            place.refuse("nothing shows where the echoed prompt ends", fits)
        if self.part == "all":
            if choice.is_repeated:
                parts.pop("prompt", None)
            elif not parts:
                place.refuse("it has no log-probabilities", "have some: request logprobs")
            return [(name, parts[name]) for name in _ORDER if name in parts]
        if self.part == "prompt":
            if choice.is_repeated:
                return []
            if prompt is None or not (prompt.has_number() or len(prompt) == 1):
                place.refuse(_IGNORED, f"return them; to leave the prompt out, use {named('part', 'generated')}")
            return [("prompt", prompt)]
        if self.options["part"] is None and prompt is not None and prompt.has_number():
            place.refuse(_PROMPTS, "choose the part: prompt, generated or all")
        tokens = choice.parts.get("generated")
        if tokens is None or not (tokens.has_number() or (not len(tokens) and choice.n_generated == 0)):
            got = "it has no log-probabilities of generated tokens"
            if self.options["part"] is None:
                got += " or of a prompt: the server ignored echo, or they were not requested"
            place.refuse(got, "have some: request logprobs")
        return [("generated", tokens)]


def each_file(source: Responses) -> list[Responses]:
    """A source for each of the files; if there are several, any of them may lack log-probabilities."""
    files = zip(source.paths, source._dialects, strict=True)
    is_one = len(source.paths) > 1
    return [
        replace(source, paths=(path,), failed=[], _dialects=(dialect,), _is_one_of_several=is_one)
        for path, dialect in files
    ]


def refuse_without_number(path: str, part: str) -> NoReturn:
    """Raise an error that a file, and any other read with it, has no log-probability of a part."""
    got = "has no log-probability"
    if part == "prompt":
        got += " of a prompt (no server returns one for its first token)"
    refuse(path, got, f"have some for the part {part!r}")


_ORDER = ("prompt", "all", "generated")
_IGNORED = "the server returned no prompt log-probabilities: it ignored echo, or they were not requested"
_PROMPTS = "it has log-probabilities of the prompt, but earlier responses do not"


def _check_prompt(choice: Choice, has_prompts: bool | None, place: Place) -> bool | None:
    """Whether choices have log-probabilities of prompts, as known after this one: all but single tokens, or none."""
    prompt = choice.parts.get("prompt") or choice.parts.get("all")
    if prompt and prompt.has_number():
        if has_prompts is False:
            place.refuse(_PROMPTS, "have the same parts as earlier responses")
        return True
    if prompt and len(prompt) == 1:
        return has_prompts
    if has_prompts:
        place.refuse(_IGNORED, "have them, as earlier responses do")
    return False


def _bodies(path: str) -> Iterator[tuple[Place, str | None, dict[str, Any], str, dict[str, Any]]]:
    """Each response of a file: its line, the request's name, the response, why it failed, if it did, and its record."""

    @functools.cache
    def is_proved() -> bool:  # by any line: all are read, if one asks
        return any(proves_own_first(body, place) for place, _, body, *_ in _bodies(path))

    for line, value in read_responses(path):
        yield Place(path, line, is_proved), *failure(value), value


def _looked_ahead(path: str) -> tuple[Literal["prompt", "generated"] | None, str]:
    """The part that a file shows (None if it does not, as with prompts of a single token), and its dialect."""
    dialect = ""
    for place, _, body, reason, _ in _bodies(path):
        if reason:
            continue
        name, choices = read(body, place)
        dialect = dialect or name
        for choice in choices:
            prompt, generated = choice.parts.get("prompt") or choice.parts.get("all"), choice.parts.get("generated")
            if prompt and prompt.has_number():
                return "prompt", dialect
            if not prompt and not choice.is_repeated and generated and generated.has_number():
                return "generated", dialect
    return None, dialect


def open_responses(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    part: Literal["prompt", "generated", "all"] | None = None,
    skip_failed: bool = False,
) -> Responses:
    """Open files of responses of an inference server, which contain log-probabilities of tokens.

    Parameters
    ----------
    paths : path or paths
        A .json, .jsonl or .ndjson file, perhaps compressed by gzip: responses as a server sent them, or the lines of a
        batch. Or the stream of a response: its pieces, one after the other; or, under any name, as server-sent events,
        which are lines of ``data:`` and a piece. Or several such files, a pattern of their names, or their directory.
    part : {"prompt", "generated", "all"}, optional
        The tokens to read: the prompt's, the generated ones, or both. By default the prompt if the file
        has any log-probability of it, else the generated tokens. With "all", an echo that cannot be divided counts as a
        prompt.
    skip_failed : bool, default False
        Leave out failed lines of a batch and list them in `Responses.failed`, instead of raising an error.

    Returns
    -------
    Responses
        A source, which can be iterated over any number of times.

    Raises
    ------
    TypeError, ValueError, OSError
        As in `open_scores`. Also if a response is ambiguous; the message names the line, and the field if there is one.

    See Also
    --------
    tokenloss.formats.open_scores : Opens a file of logits or probabilities.

    Notes
    -----
    A file is read line by line, .json object by object, and never as a whole. The page "Files and their arrays" of the
    reference lists the layouts of servers, and what is refused rather than guessed.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss.formats import open_responses
    >>> token = {"token": "Yes", "logprob": -0.25, "top_logprobs": [{"token": "Yes", "logprob": -0.25}]}
    >>> answer = {"message": {"content": "Yes"}, "logprobs": {"content": [token]}}
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "responses.jsonl"
    >>> _ = path.write_text(json.dumps({"choices": [answer]}))
    >>> [(response.tokens, response.logprobs) for response in open_responses(path)]
    [(array(['Yes'], dtype=object), array([-0.25]))]
    """
    check_choice("part", part, PARTS_OF_RESPONSE)
    _, files = located(paths)
    check_different(files)
    options = {"part": part, "skip_failed": bool(skip_failed)}
    ahead = [_looked_ahead(path) for path in files]
    return Responses(
        tuple(files), options, part=part or _part(files, ahead), _dialects=tuple(name for _, name in ahead)
    )


def _part(paths: Sequence[str], ahead: Sequence[tuple[Literal["prompt", "generated"] | None, str]]) -> Any:
    """The part that all files contain; None if no file shows one."""
    shown = [(path, part) for path, (part, _) in zip(paths, ahead, strict=True) if part is not None]
    for path, part in shown:
        if part != shown[0][1]:
            got = f"has log-probabilities of the part {part!r}, but {shown[0][0]} has {shown[0][1]!r}"
            fits = f"have the same part, or be scored separately, or all with {named('part', 'generated')}"
            refuse(path, got, fits)
    return shown[0][1] if shown else "generated"
