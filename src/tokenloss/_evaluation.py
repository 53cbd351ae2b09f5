"""Evaluations of files: what is to be scored, shard by shard, and what was found, here, elsewhere or earlier."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss import __version__, _arrays, _core
from tokenloss._files import identity, replacing
from tokenloss._rows import Rows
from tokenloss._softmax import log_softmax, logsumexp
from tokenloss.comparison import _UNNORMALIZED, ComparisonMeter
from tokenloss.formats import npy, open_scores
from tokenloss.formats._base import ScoresFile, check_map, rows_at
from tokenloss.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss.meter import LossMeter
from tokenloss.scores import token_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal, NoReturn

    from tokenloss._per_token import Sink
    from tokenloss._types import Array
    from tokenloss.comparison import Comparison
    from tokenloss.scores import TokenScores


_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": cross_entropy,
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}
_BLOCK_BYTES = 32 << 20  # that are read at a time
_BLOCK_ROWS = 1 << 20  # and rows, each of which takes some bytes more
_CACHED = 1 << 16  # numbers that stay in a core's cache
_TEXT_BYTES = 1 << 20  # of a text that are read at a time
_FIRST_ROWS = 16  # by which scores are told from those of another kind
_FIRST_ELEMENTS = 1 << 24  # that are looked at in them
_UNNORMALIZED_HALF = 0.5  # how far the logsumexp of log-probabilities in half precision may be from 0
_SHARE_SLACK = 1e-3  # how far a share of a distribution may be outside [0, 1]
_SUM_SLACK = 1e-2  # how far the sum of a distribution may be from 1


class Options(NamedTuple):
    """Options that change the result of a shard."""

    array: str | None = None
    kind: Literal["logits", "log_probs", "probs"] | None = None
    ignore_index: int = -100
    shift: bool = False
    top: int = 5


class Shard(NamedTuple):
    """A file of scores."""

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int
    targets: str | None = None  # the file that holds them, if that is another
    start: int | None = None  # where in it they start, if it holds those of other shards, too
    holds: str = "class ids"  # or "distributions": what its targets are
    next_id: int | None = None  # the first id of the next shard, if the last row predicts it
    next_text: str | None = None

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return math.prod(self.shape[:-1])

    @property
    def n_bytes(self) -> int:
        """How many bytes the scores take."""
        return self.rows * self.row_bytes

    def absolute(self) -> Shard:
        """The same for who works in another directory."""
        targets = self.targets and str(Path(self.targets).absolute())
        return self._replace(path=str(Path(self.path).absolute()), targets=targets)

    def batch(self, options: Options) -> tuple[int, ...]:
        """The shape of the rows that are scored; shifting leaves those out whose next token is not known."""
        if not options.shift or self.next_id is not None:
            return self.shape[:-1]
        *others, length = self.shape[:-1] or (1,)
        return (*others, max(0, length - 1))


class Costly(NamedTuple):
    """A token of high loss."""

    position: int
    target: int
    loss: float
    text: str | None

    @property
    def cost(self) -> float:
        """What tokens are ordered by, nan above all."""
        return math.inf if math.isnan(self.loss) else self.loss


class Found(NamedTuple):
    """What was found in a shard."""

    meter: LossMeter
    ignored: int
    greedy: int
    costliest: list[Costly]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        costliest = [(*token[:2], repr(token.loss), token.text) for token in self.costliest]
        return {**self._asdict(), "meter": self.meter._to_json(), "costliest": costliest}

    @classmethod
    def from_json(cls, found: Any) -> Found:
        """What `to_json` gave."""
        costliest = [Costly(position, target, float(loss), text) for position, target, loss, text in found["costliest"]]
        return cls(LossMeter._from_json(found["meter"]), found["ignored"], found["greedy"], costliest)

    def is_possible(self, rows: int, top: int) -> bool:
        """Consistency check of a checkpoint entry: whether scoring `rows` rows with `--top top` can give it."""
        integers = [self.ignored, self.greedy, *(number for token in self.costliest for number in token[:2])]
        return (
            all(type(number) is int and abs(number) < 2**63 for number in integers)
            and all(token.text is None or isinstance(token.text, str) for token in self.costliest)
            and len(self.costliest) <= top
            and self.meter.count + self.ignored == rows
            and 0 <= self.greedy <= self.meter.count <= rows
            and self.meter.n_bytes == self.meter.n_words == 0  # which are of all shards together
        )


# -- what is to be scored ---------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """An open shard."""

    file: ScoresFile
    targets: Array
    where: Array | None  # the rows that are scored, if not all are
    tokens: Array | None


def plan(paths: Sequence[str], targets: Sequence[str], options: Options) -> list[Shard]:
    """Open all files, and judge all that is in them but the scores, before anything is scored."""
    if not targets and len(paths) == 2 and _holds_class_ids(paths[1], _open(paths[0], options)):
        paths, targets = paths[:1], paths[1:]
    misplaced = [_misplaced(paths), _misplaced(targets)]
    if options.shift or (targets and not all(misplaced)):
        for path, following in itertools.chain(*misplaced):
            fits = "come after it; with the pattern in quotes, files are in the order of their numbers"
            _arrays.fail("content", path=path, got=f"comes before {following}", fits=fits)
    shards: list[Shard] = []
    for path in paths:
        file = _open(path, options)
        shard = Shard(path, file.kind, file.shape, file.dtype.name, file.row_bytes)
        if shards and (shard.kind, shard.shape[-1]) != (shards[0].kind, shards[0].shape[-1]):
            got = f"holds {shard.kind} of {shard.shape[-1]} classes"
            fits = f"hold {shards[0].kind} of {shards[0].shape[-1]}, as {shards[0].path} does"
            _arrays.fail("content", path=path, got=got, fits=fits)
        shards.append(shard)
    shards = _with_targets(shards, targets)
    if options.shift:
        shards = _linked(shards, options)
    for number, shard in enumerate(shards):
        given = _given(shard, options)
        with _naming(shard.path, shard.targets):
            name = "shifted targets" if options.shift else "targets"
            check(name, shard.shape, shard.kind, given.targets, options.ignore_index, given.where)
        if given.targets.ndim == len(shard.shape):
            shards[number] = shard._replace(holds="distributions")
    return shards


def _holds_class_ids(path: str, scores: ScoresFile) -> bool:
    """Whether a file holds the class ids of the scores, as an integer .npy array."""
    if scores.targets is not None or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.read(len(npy.MAGIC)) != npy.MAGIC:
            return False
    array = npy.open_array(path)
    if array.dtype.kind in "iub" and array.shape == scores.shape:
        got = f"holds {array.dtype} of the shape of {scores.kind}"
        _arrays.fail("content", path=path, got=got, fits="come with --targets to be distributions")
    return array.dtype.kind in "iu"


def check_different(paths: Sequence[str]) -> None:
    """Refuse a file that is given twice, under whatever names."""
    seen: dict[object, str] = {}
    for path in paths:
        first = seen.get(identity(path))
        if first is not None:
            got = "is given twice" if first == path else f"is given twice, as {first}, too"
            _arrays.fail("content", path=path, got=got, fits="be given once")
        seen[identity(path)] = path


def by_number(path: str) -> tuple[str | int, ...]:
    """Sort key by which part-2 comes before part-10."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path)))


def _misplaced(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours against the order of their numbers, if all are sorted by letters as a shell does."""
    return [
        (path, following)
        for path, following in itertools.pairwise(paths if list(paths) == sorted(paths) else ())
        if by_number(path) > by_number(following) and by_number(path)[::2] == by_number(following)[::2]
    ]


def _linked(shards: list[Shard], options: Options) -> list[Shard]:
    """Tell each shard that is one sequence which token the next one begins with."""
    linked = []
    next_id = next_text = None
    for shard in reversed(shards):
        if len(shard.shape) != 2:
            next_id = next_text = None
        elif shard.rows:
            _, ids, tokens = _unshifted(shard, options)
            shard = shard._replace(next_id=next_id, next_text=next_text)
            next_id = int(ids[0]) if ids.dtype.kind in "iu" and ids.ndim == 1 else None
            next_text = None if tokens is None else str(tokens[0])
        linked.append(shard)
    return linked[::-1]


def _open(path: str, options: Options) -> ScoresFile:
    """Open a file of scores."""
    return open_scores(path, array=options.array, kind=options.kind)


def _with_targets(shards: list[Shard], targets: Sequence[str]) -> list[Shard]:
    """Tell each shard where its targets are: in a file each, or in one for all."""
    if len(targets) == len(shards):
        return [shard._replace(targets=path) for shard, path in zip(shards, targets, strict=True)]
    if not targets:
        return shards
    rows = sum(shard.rows for shard in shards)
    if len(targets) > 1:
        fits = f"be {len(shards)}, one for each file of scores, or one for all"
        _arrays.fail("content", path=targets[0], got=f"is one of {len(targets)} files of targets", fits=fits)
    ids = npy.open_array(targets[0])
    if ids.size != rows:
        fits = f"hold {rows} class ids, one for each row of the {len(shards)} files of scores"
        _arrays.fail("content", path=targets[0], got=f"has shape {ids.shape}", fits=fits)
    starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    return [shard._replace(targets=targets[0], start=start) for shard, start in zip(shards, starts, strict=False)]


@contextlib.contextmanager
def _naming(*files: str | None) -> Iterator[None]:
    """Put the names of files before errors about their arrays."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{', '.join(filter(None, files))}: {error}") from error


def check(
    name: str,
    shape: tuple[int, ...],
    kind: str,
    targets: Array,
    ignore_index: int,
    where: Array | None = None,
    soft: bool = True,
) -> None:
    """Have the package judge all targets, before anything of the size of the scores is read.

    Zeros of the shape stand in for the scores. Of shifted targets, errors give the position of the row that predicts.
    """
    rows = Rows(_core.LOG_PROBS, kind, np.broadcast_to(np.float32(0), shape), -1)
    rows.against(name, targets, ignore_index, distributions=soft)
    rows.keep(None, np.False_ if targets.ndim == len(shape) else where)
    rows.reduce("sum")
    rows.run(None)


def _unshifted(shard: Shard, options: Options) -> tuple[ScoresFile, Array, Array | None]:
    """Open a shard: the file, its targets and its text as they are stored."""
    file = _open(shard.path, options)
    targets = file.targets
    if shard.targets is not None:
        targets = npy.open_array(shard.targets)
        if shard.start is not None:
            targets = targets.reshape(-1)[shard.start : shard.start + file.rows].reshape(file.shape[:-1])
    if targets is None:
        _arrays.fail("content", path=shard.path, got="holds no targets", fits="hold them, or come with --targets")
    return file, targets, file.tokens


def _given(shard: Shard, options: Options) -> _Given:
    """Open a shard."""
    file, targets, tokens = _unshifted(shard, options)
    if not options.shift:
        return _Given(file, targets, None, tokens)
    _check_sequences(file, targets, shard.targets)
    if shard.next_id is None:
        targets, where = _shifted(targets)
        return _Given(file, targets, where, None if tokens is None else np.roll(tokens, -1, -1))
    # NumPy has no integer for both uint64 and numbers below 0: its float64 is none for class ids
    dtype = np.int64 if shard.next_id < 0 else np.result_type(targets, np.min_scalar_type(shard.next_id))
    targets = np.append(targets[1:].astype(dtype), np.array(shard.next_id, dtype))
    if tokens is not None:
        tokens = np.append(tokens[1:].astype(object), np.array(shard.next_text, object))
    return _Given(file, targets, None, tokens)


def _check_sequences(file: ScoresFile, targets: Array, path: str | None) -> None:
    """Refuse targets that cannot be shifted; the path is that of the file that holds them, if it is another."""
    fits = "hold an id for each row of sequences, to be shifted"
    if path is None and file.is_shifted:
        _arrays.fail("content", path=file.path, got="holds targets that are the next tokens", fits=fits)
    if len(file.shape) < 2 or targets.shape != file.shape[:-1]:
        _arrays.fail("content", path=path or file.path, got=f"holds targets of shape {targets.shape}", fits=fits)


def _shifted(ids: Array) -> tuple[Array, Array]:
    """The id after each row in its sequence, and which rows have one."""
    length = ids.shape[-1]
    return np.roll(ids, -1, -1), np.broadcast_to(np.arange(length) < length - 1, ids.shape)


# -- what is found ----------------------------------------------------------------------------------------------------


def score(
    shard: Shard,
    options: Options,
    workers: int | None,
    sink: Sink | None = None,
    top_k: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Found:
    """Fold the tokens of a shard, block by block; the sink is given the scores, class ids and text of those in each."""
    file, targets, where, text = _given(shard, options)
    is_soft = targets.ndim == len(file.shape)
    ids = None if is_soft else targets.reshape(-1)
    flags = None if where is None else where.reshape(-1)
    row_bytes = file.row_bytes + (file.shape[-1] * targets.itemsize if is_soft else 0)
    meter, costliest = LossMeter(), _Costliest(options.top)
    seen = greedy = 0
    is_checked = file.kind == "log_probs"  # of which every row is checked with its block
    for block in file.blocks(max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))):
        stop = seen + len(block)
        check_map(targets)
        part = rows_at(targets, seen, stop) if ids is None else np.array(ids[seen:stop])
        scored = None if flags is None else flags[seen:stop]
        classes = _argmax(part, functools.partial(_refuse_row, shard, seen)) if is_soft else part
        with _naming(file.path, f"rows from {seen} on" if seen else None):
            scores = _token_scores(
                file.kind, block, part, classes, scored, options.ignore_index, workers, top_k=top_k,
                every=sink is not None, is_believed=options.kind is not None,
            )  # fmt: skip
        is_checked = is_checked or _check_kind(file, None if options.kind else "--kind", block, scores.kept)
        meter.update(scores.nll, where=scores.kept)
        greedy += int(np.count_nonzero(scores.is_greedy))
        costliest.update(scores.nll, classes, scores.kept, seen)
        if sink:
            words = None if text is None else text.reshape(-1)[seen:stop]
            sink(scores, classes, words) if scored is None else sink(*_rows(scored, scores, classes, words))
        if advance:
            advance(block.nbytes)
        seen = stop
    ignored = (seen if where is None else int(np.count_nonzero(where))) - meter.count
    return Found(meter, ignored, greedy, costliest.tokens(text))


def _token_scores(
    kind: str,
    block: Array,
    targets: Array,
    ids: Array,
    where: Array | None,
    ignore_index: int,
    workers: int | None,
    *,
    top_k: int,
    every: bool,
    is_believed: bool,
) -> TokenScores:
    """Scores of the rows of a block; the ids are its targets, or the likeliest classes of distributions."""
    options: Any = {"ignore_index": ignore_index, "where": where, "workers": workers}
    is_soft = targets.ndim == block.ndim
    logits = block
    if kind == "probs" and every:  # for the entropy
        logits = _log(block)
    unknown = {"ignore_index": -1} if is_soft else {}
    scores = token_scores(logits, ids, top_k=min(top_k, block.shape[1]), **options | unknown)
    if kind == "log_probs":
        _check_normalized(scores.logsumexp, block.itemsize, is_believed)
    if kind != "logits" or is_soft:
        nll = _LOSSES[kind](block, targets, reduction="none", **options)
        scores = dataclasses.replace(scores, nll=nll, kept=np.ones(nll.shape, np.bool_) if is_soft else scores.kept)
    return scores


def _check_normalized(normalizers: Array, itemsize: int, is_believed: bool) -> None:
    """Refuse rows that are no natural log-probabilities, by their logsumexp.

    Less than 0 it may be where a row was cut to its likeliest classes: that is believed where the kind was given.
    """
    slack = _UNNORMALIZED if itemsize > 2 else _UNNORMALIZED_HALF
    wrong = normalizers[(normalizers > slack) | (normalizers < (-np.inf if is_believed else -slack))]  # nan is not
    if wrong.size:
        fits = "natural log-probabilities have 0: is it base 2, or logits, or cut? --kind log_probs takes what is cut"
        _arrays.fail("unnormalized", name="log_probs", got=wrong[0], fits=fits)


def _check_kind(file: ScoresFile, option: str | None, block: Array, kept: Array) -> bool:
    """Refuse scores of another kind, by the first kept rows of a block; whether it has any.

    `option` names the one that sets the kind; None where it was given, and is believed.
    """
    most = min(_FIRST_ROWS, _FIRST_ELEMENTS // max(1, block.shape[1]))
    rows = block[np.flatnonzero(kept)[:most]]
    with np.errstate(invalid="ignore"):  # a nan that signals
        rows = rows.astype(np.float64)
    if file.kind == "log_probs":
        with _naming(file.path):
            _check_normalized(logsumexp(rows), block.itemsize, option is None)
    rows = rows[rows.any(-1) & ~np.isnan(rows).any(-1)]  # others say nothing
    if file.kind == "logits" and option and rows.size > len(rows) and _are_distributions(rows).all():
        got = "looks like probabilities, since rows add up to 1"
        fits = f"come with {option} probs, and --array if it has a name, or with {option} logits if it holds logits"
        _arrays.fail("content", path=file.path, got=got, fits=fits)
    return len(rows) > 0 or most == 0


def _are_distributions(rows: Array, slack: float = 0.0) -> Array:
    """Mask of the rows of (N, V) that are probability distributions: values in [0, 1] within the slack, sum 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        adds_up = abs(rows.sum(-1, dtype=np.float64) - 1) <= _SUM_SLACK
    fits: Array = adds_up & (rows.min(-1) >= -slack) & (rows.max(-1) <= 1 + slack)
    return fits


def _refuse_row(shard: Shard, start: int, row: int, shares: Array) -> NoReturn:
    """Say why a row of targets is no distribution; it belongs to a block whose first row is at `start`."""
    position = [int(i) for i in np.unravel_index(start + row, shard.shape[:-1])] or ""
    got, fits = f"adds up to {shares.sum(dtype=np.float64):.4g}", "add up to 1, as a distribution does"
    for share in (shares.min(), shares.max()):
        if not -_SHARE_SLACK <= share <= 1 + _SHARE_SLACK:
            got, fits = f"has a share of {share:.4g}", "have shares from 0 to 1"
    row_name, path = f"targets{position}", shard.targets or shard.path
    _arrays.fail("content", path=path, got=f"{row_name} {got}", fits=f"{fits}; class ids are integers")


def _log(probs: Array) -> Array:
    """Logarithms in float64, where numbers that differ stay apart."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Array = np.log(probs, dtype=np.float64)
    return logs


def _rows(kept: Array, scores: TokenScores, ids: Array, text: Array | None) -> tuple[TokenScores, Array, Array | None]:
    """Scores, class ids and text of some rows."""
    columns = {field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)}
    kept_columns = {name: column[kept] for name, column in columns.items() if column is not None}
    return dataclasses.replace(scores, **kept_columns), ids[kept], None if text is None else text[kept]


def _argmax(rows: Array, refuse: Callable[[int, Array], NoReturn]) -> Array:
    """First maximum of each distribution of (N, V); -1 where there is no class."""
    found = np.full(len(rows), -1)
    # NumPy copies what is read-only, and compares float16 one by one: small pieces that are copied as float32 stay in a
    # core's cache, and are ten times as fast
    dtype = np.float32 if rows.itemsize < 4 else rows.dtype
    step = max(1, _CACHED // (rows.shape[1] or 1))
    for start in range(0, len(rows) if rows.size else 0, step):
        part = rows[start : start + step].astype(dtype)
        for row in np.flatnonzero(~_are_distributions(part, _SHARE_SLACK))[:1].tolist():
            refuse(start + row, part[row])
        found[start : start + step] = part.argmax(-1)
    return found


class _Costliest:
    """Tokens of the highest losses so far, nan above all, earlier ones before later ones of the same loss."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._found: list[Costly] = []

    def update(self, nll: Array, ids: Array, kept: Array, start: int) -> None:
        """Look at a block of tokens, the first of which is at `start`."""
        cost = np.where(np.isnan(nll), np.inf, nll)
        bar = self._found[-1].cost if self._found and len(self._found) == self._top else -np.inf
        new = np.flatnonzero(kept & (cost > bar))
        new = new[np.argsort(-cost[new], kind="stable")[: self._top]]
        self._found += [Costly(start + int(i), int(ids[i]), float(nll[i]), None) for i in new]
        self._found = sorted(self._found, key=lambda token: -token.cost)[: self._top]

    def tokens(self, text: Array | None) -> list[Costly]:
        """All of them, with their text."""
        if text is None:
            return self._found
        words = [(token, text.reshape(-1)[token.position]) for token in self._found]
        return [token._replace(text=None if word is None else str(word)) for token, word in words]


def total(found: Sequence[Found], n_bytes: int, n_words: int) -> LossMeter:
    """Meter of all shards, of a text of this length."""
    meter = LossMeter()
    meter.update([], n_bytes=n_bytes, n_words=n_words)
    for part in found:
        meter.merge(part.meter)
    return meter


def extent(path: str) -> tuple[int, int]:
    """How many bytes and words a text has."""
    n_bytes = n_words = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends_inside = False  # a word
    with Path(path).open("rb") as file:  # perhaps a pipe, whose length nobody knows
        while True:
            data = file.read(_TEXT_BYTES)
            text = decoder.decode(data, final=not data)
            n_bytes += len(data)
            if text:
                n_words += len(text.split()) - (ends_inside and not text[0].isspace())
                ends_inside = not text[-1].isspace()
            if not data:
                break
    if not n_bytes:
        _arrays.fail("content", path=path, got="is empty", fits="hold a text")
    return n_bytes, n_words


def figures(shards: Sequence[Shard], found: Sequence[Found], meter: LossMeter, options: Options) -> dict[str, Any]:
    """Figures of all shards together, and of each."""
    rows = sum(shard.rows for shard in shards)
    costliest = [(token, shard.path) for shard, part in zip(shards, found, strict=True) for token in part.costliest]
    costliest.sort(key=lambda token: -token[0].cost)
    return {
        "files": [path for shard in shards for path in (shard.path, shard.targets) if path],
        "kind": shards[0].kind,
        "shape": shards[0].shape if len(shards) == 1 else (rows, shards[0].shape[-1]),
        "dtype": ", ".join(dict.fromkeys(shard.dtype for shard in shards)),
        "targets": ", ".join(dict.fromkeys(shard.holds for shard in shards)),
        **_figures(found, meter),
        "without_next": rows - sum(math.prod(shard.batch(options)) for shard in shards),
        "perplexity_interval": meter.perplexity_interval,
        "bits_per_token": meter.bits_per_token,
        "n_bytes": meter.n_bytes,
        "n_words": meter.n_words,
        "bits_per_byte": meter.bits_per_byte,
        "word_perplexity": meter.word_perplexity,
        "costliest": [
            {"file": path, "position": token.position, "target": token.target, "text": token.text}
            | {"loss": token.loss, "probability": _probability(token.loss)}
            for token, path in costliest[: options.top]
        ],
        "shards": [
            {"file": shard.path, "shape": shard.shape, **_figures([part], part.meter)}
            for shard, part in zip(shards, found, strict=True)
        ],
    }


def _figures(found: Sequence[Found], meter: LossMeter) -> dict[str, Any]:
    """Figures that a shard and the total both have."""
    return {
        "tokens": meter.count,
        "ignored": sum(part.ignored for part in found),
        "loss": meter.loss,
        "stderr": meter.stderr,
        "perplexity": meter.perplexity,
        "accuracy": sum(part.greedy for part in found) / meter.count if meter.count else math.nan,
    }


def _probability(loss: float) -> float:
    """Probability that costs so much."""
    with np.errstate(over="ignore"):
        return float(np.exp(-loss))


# -- two files --------------------------------------------------------------------------------------------------------


class ComparisonOptions(NamedTuple):
    """Options of `tokenloss compare` that affect its result, without the names of arrays."""

    base_kind: Literal["logits", "log_probs", "probs"] | None = None
    kind: Literal["logits", "log_probs", "probs"] | None = None
    ignore_index: int = -100
    shift: bool = False
    definitions: Literal["exact", "llama.cpp"] = "exact"


def compare(
    base: ScoresFile,
    other: ScoresFile,
    targets: str | None,
    options: ComparisonOptions,
    workers: int | None,
    advance: Callable[[int], None],
) -> Comparison:
    """Compare two files, block by block; targets are the same wherever there are any."""
    shape = base.rows, base.shape[-1]
    if (other.rows, other.shape[-1]) != shape:
        got = f"holds {other.rows} rows of {other.shape[-1]} classes"
        fits = f"hold {shape[0]} rows of {shape[1]}, as {base.path} does"
        _arrays.fail("content", path=other.path, got=got, fits=fits)
    held = [(file.path, file.targets) for file in (base, other) if file.targets is not None]
    if targets is not None:
        held.append((targets, npy.open_array(targets)))
    if not held:
        _arrays.fail("content", path=base.path, got="holds no targets", fits="hold them, or come with --targets")
    (first, ids), *rest = held
    for path, others in rest:
        if not np.array_equal(ids.reshape(-1), others.reshape(-1)):
            _arrays.fail("content", path=path, got="holds other targets", fits=f"hold those of {first} if any")
    where = np.broadcast_to(np.True_, shape[:1])
    if options.shift:
        if other.shape != base.shape:
            got, fits = f"holds {other.kind} of shape {other.shape}", f"have the shape {base.shape} of {base.path}"
            _arrays.fail("content", path=other.path, got=got, fits=f"{fits}, to be shifted")
        for file in (base, other):
            _check_sequences(file, ids, None if file.is_shifted else first)
        ids, where = (array.reshape(-1) for array in _shifted(ids))
    with _naming(base.path, targets):
        if ids.size == shape[0]:
            ids = ids.reshape(-1)
        name = "shifted targets" if options.shift else "targets"
        check(name, shape, base.kind, ids, options.ignore_index, where, soft=False)
    meter = ComparisonMeter(definitions=options.definitions, ignore_index=options.ignore_index, workers=workers)
    unchecked = {base: None if options.base_kind else "--base-kind", other: None if options.kind else "--kind"}
    most_rows = max(1, min(_BLOCK_BYTES // (max(base.row_bytes, other.row_bytes) or 1), _BLOCK_ROWS))
    seen = 0
    for block, other_block in _in_step(base.blocks(most_rows), other.blocks(most_rows)):
        part = slice(seen, seen + len(block))
        check_map(ids)
        kept = where[part] & (ids[part] != options.ignore_index)
        for file, rows in (base, block), (other, other_block):
            if file in unchecked and _check_kind(file, unchecked[file], rows, kept):
                del unchecked[file]
        logits = _log(block) if base.kind == "probs" else block
        if base.kind == "logits" and options.definitions == "llama.cpp":  # which takes log-probabilities as they are
            logits = log_softmax(block.astype(np.float32) if block.itemsize < 4 else block)
        others = _log(other_block) if other.kind == "probs" else other_block
        with _naming(base.path, other.path):
            meter.update(logits, others, ids[part], where=where[part])
        seen += len(block)
        advance(block.nbytes + other_block.nbytes)
    return meter.result()


def _in_step(blocks: Iterator[Array], others: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Blocks of the same rows, of two files that may be cut differently."""
    other = np.empty(0)
    for block in blocks:
        while len(block):
            other = other if len(other) else next(others)
            rows = min(len(block), len(other))
            yield block[:rows], other[:rows]
            block, other = block[rows:], other[rows:]


# -- what was found earlier -------------------------------------------------------------------------------------------


class State:
    """What was found in shards; a file of it, if one is wanted, is written anew when another one is done."""

    def __init__(self, path: str | None, options: Options, shards: Sequence[Shard]) -> None:
        self._path = path
        self._options = {"version": __version__, **options._asdict()}
        self._shards = [_fingerprint(shard) for shard in shards] if path else []
        self._scored = [math.prod(shard.batch(options)) for shard in shards]
        self.found: dict[int, Found] = {}
        if path and Path(path).exists():
            if not Path(path).is_file():  # a device may never end
                self._refuse("is no file", "be one, or not exist yet")
            self._read(path)
        self._write()

    def add(self, number: int, found: Found) -> None:
        """Keep what was found in a shard."""
        self.found[number] = found
        self._write()

    def _write(self) -> None:
        """Write the file."""
        if not self._path:
            return
        done = [{"shard": self._shards[i], "found": found.to_json()} for i, found in sorted(self.found.items())]
        with replacing(self._path) as file:
            file.write(json.dumps({"options": self._options, "done": done}, indent=1).encode())

    def _read(self, path: str) -> None:
        """Read what was found, if it was in these shards and by these options."""
        try:
            state = json.loads(Path(path).read_bytes())
            options = state["options"]
            done = [(entry["shard"], Found.from_json(entry["found"])) for entry in state["done"]]
            changed = {
                name: reprlib.repr(options[name]) for name, value in self._options.items() if options[name] != value
            }
            numbers = {shard["path"]: number for number, shard in enumerate(self._shards)}
            ours = [(str(shard["path"]), shard, numbers.get(shard["path"]), found) for shard, found in done]
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            self._refuse("is no state of tokenloss score", "be one, or not exist yet")
        for name, value in changed.items():
            self._refuse(f"was written with {name} {value}", f"be another file, with {self._options[name]!r}")
        for path, shard, number, found in ours:
            if number is None:
                self._refuse(f"holds what was found in {path}", "be another file, since that one is not to be scored")
            if shard != self._shards[number]:
                self._refuse(
                    f"holds what was found in {path}", "be another file, since that one or its targets changed"
                )
            if number in self.found or not found.is_possible(self._scored[number], self._options["top"]):
                self._refuse(f"holds what cannot be found in {path}", "be as it was written")
            self.found[number] = found

    def _refuse(self, got: str, fits: str) -> NoReturn:
        """Refuse the file."""
        _arrays.fail("content", path=self._path, got=got, fits=fits)


def _fingerprint(shard: Shard) -> dict[str, Any]:
    """Path, size and time of a shard and its targets, and the token after it: a result is that of these."""
    targets = shard.targets and {**_file_fingerprint(shard.targets), "start": shard.start}
    return {**_file_fingerprint(shard.path), "targets": targets, "next": [shard.next_id, shard.next_text]}


def _file_fingerprint(path: str) -> dict[str, Any]:
    """Where a file or a directory is, how large, and when it was last changed."""
    files = [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]
    stats = [file.stat() for file in files]
    return {
        "path": str(Path(path).absolute()),
        "size": sum(stat.st_size for stat in stats),
        "mtime_ns": max(stat.st_mtime_ns for stat in stats),
    }
