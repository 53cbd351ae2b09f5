"""Evaluations of files: what is to be scored, shard by shard, and what was found, here, elsewhere or earlier."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss import __version__, _arrays, _core
from tokenloss._files import replacing
from tokenloss._rows import Rows
from tokenloss.compare import ComparisonMeter
from tokenloss.formats import npy, open_scores
from tokenloss.formats._base import ScoresFile, check_map, rows_at
from tokenloss.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss.meter import LossMeter
from tokenloss.scores import token_scores
from tokenloss.softmax import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal, NoReturn

    from tokenloss._types import Array, Sink
    from tokenloss.compare import Comparison
    from tokenloss.scores import TokenScores


_LOSSES: dict[str, Callable[..., Any]] = {
    "logits": cross_entropy,
    "log_probs": nll_loss,
    "probs": lambda probs, targets, **options: cross_entropy_loss(targets, probs, **options),
}
_BLOCK_BYTES = 32 << 20  # that are read at a time
_BLOCK_ROWS = 1 << 20  # and rows, each of which takes some bytes more
_CACHED = 1 << 16  # numbers that stay in a core's cache


class Options(NamedTuple):
    """What decides what is found in a shard."""

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
        """The shape of the rows that are scored; shifting leaves the last one of each sequence out."""
        *others, length = self.shape[:-1] or (1,)
        return self.shape[:-1] if not options.shift else (*others, max(0, length - 1))


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
        """Whether so many rows that are scored, of which so many costliest are kept, can be found to be this."""
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
    if not targets and len(paths) == 2 and _open(paths[0], options).targets is None:
        paths, targets = paths[:1], paths[1:]
    shards: list[Shard] = []
    for path in paths:
        if path in (shard.path for shard in shards):
            _arrays.fail("content", path=path, got="is given twice", fits="be given once")
        file = _open(path, options)
        shard = Shard(path, file.kind, file.shape, file.dtype.name, file.row_bytes)
        if shards and (shard.kind, shard.shape[-1]) != (shards[0].kind, shards[0].shape[-1]):
            got = f"holds {shard.kind} of {shard.shape[-1]} classes"
            fits = f"hold {shards[0].kind} of {shards[0].shape[-1]}, as {shards[0].path} does"
            _arrays.fail("content", path=path, got=got, fits=fits)
        shards.append(shard)
    shards = _with_targets(shards, targets)
    for shard in shards:
        given = _given(shard, options)
        with _naming(shard.path, shard.targets):
            check(shard.shape, shard.kind, given.targets, options.ignore_index, given.where)
    return shards


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
    """Let what is said about arrays name their files."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{', '.join(filter(None, files))}: {error}") from error


def check(
    shape: tuple[int, ...], kind: str, targets: Array, ignore_index: int, where: Array | None = None, soft: bool = True
) -> None:
    """Have the package judge targets, before anything of the size of the scores is read.

    Scores that are all the same stand in for the real ones, so that only class ids are looked at, and all of them.
    """
    rows = Rows(_core.LOG_PROBS, kind, np.broadcast_to(np.float32(0), shape), -1)
    rows.against("targets", targets, ignore_index, distributions=soft)
    rows.keep(None, np.False_ if targets.ndim == len(shape) else where)
    rows.reduce("sum")
    rows.run(None)


def _given(shard: Shard, options: Options) -> _Given:
    """Open a shard."""
    file = _open(shard.path, options)
    batch, targets, tokens, where = file.shape[:-1], file.targets, file.tokens, None
    if shard.targets is not None:
        targets = npy.open_array(shard.targets)
        if shard.start is not None:
            targets = targets.reshape(-1)[shard.start : shard.start + file.rows].reshape(batch)
    if targets is None:
        _arrays.fail("content", path=shard.path, got="holds no targets", fits="hold them, or come with --targets")
    if options.shift:
        fits = "hold an id for each row of sequences, to be shifted"
        if shard.targets is None and file.is_shifted:
            _arrays.fail("content", path=shard.path, got="holds targets that are the next tokens", fits=fits)
        if not batch or targets.shape != batch:
            path = shard.targets or shard.path
            _arrays.fail("content", path=path, got=f"holds targets of shape {targets.shape}", fits=fits)
        targets, tokens = np.roll(targets, -1, -1), None if tokens is None else np.roll(tokens, -1, -1)
        where = np.broadcast_to(np.arange(batch[-1]) < batch[-1] - 1, batch)
    return _Given(file, targets, where, tokens)


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
    for block in file.blocks(max(1, min(_BLOCK_BYTES // (row_bytes or 1), _BLOCK_ROWS))):
        stop = seen + len(block)
        check_map(targets)
        part = rows_at(targets, seen, stop) if ids is None else np.array(ids[seen:stop])
        scored = None if flags is None else flags[seen:stop]
        scores, classes = _token_scores(
            file.kind, block, part, scored, options.ignore_index, workers, top_k=top_k, every=sink is not None
        )
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
    where: Array | None,
    ignore_index: int,
    workers: int | None,
    *,
    top_k: int,
    every: bool,
) -> tuple[TokenScores, Array]:
    """Scores of the rows of a block and the class ids that they are of: the likeliest ones of distributions."""
    options: Any = {"ignore_index": ignore_index, "where": where, "workers": workers}
    is_soft = targets.ndim == block.ndim
    ids = _argmax(targets) if is_soft else targets
    logits = block
    if kind == "probs" and every:  # for the entropy
        logits = _log(block)
    unknown = {"ignore_index": -1} if is_soft else {}
    scores = token_scores(logits, ids, top_k=min(top_k, block.shape[1]), **options | unknown)
    if kind != "logits" or is_soft:
        nll = _LOSSES[kind](block, targets, reduction="none", **options)
        scores = dataclasses.replace(scores, nll=nll, kept=np.ones(nll.shape, np.bool_) if is_soft else scores.kept)
    return scores, ids


def _log(probs: Array) -> Array:
    """Logarithms in float64, where numbers that differ stay apart."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Array = np.log(probs, dtype=np.float64)
    return logs


def _rows(kept: Array, scores: TokenScores, ids: Array, text: Array | None) -> tuple[TokenScores, Array, Array | None]:
    """Those of some rows."""
    columns = {field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)}
    kept_columns = {name: column[kept] for name, column in columns.items() if column is not None}
    return dataclasses.replace(scores, **kept_columns), ids[kept], None if text is None else text[kept]


def _argmax(rows: Array) -> Array:
    """First maximum of each row of (N, V); -1 where there is no class."""
    found = np.full(len(rows), -1)
    # NumPy copies what is read-only, and compares float16 one by one: small pieces that are copied as float32 stay in a
    # core's cache, and are ten times as fast
    dtype = np.float32 if rows.itemsize < 4 else rows.dtype
    step = max(1, _CACHED // (rows.shape[1] or 1))
    for start in range(0, len(rows) if rows.size else 0, step):
        found[start : start + step] = rows[start : start + step].astype(dtype).argmax(-1)
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
        return [token._replace(text=str(text.reshape(-1)[token.position])) for token in self._found]


def total(found: Sequence[Found], n_bytes: int, n_words: int) -> LossMeter:
    """Meter of all shards, of a text of this length."""
    meter = LossMeter()
    meter.update([], n_bytes=n_bytes, n_words=n_words)
    for part in found:
        meter.merge(part.meter)
    return meter


def extent(path: str) -> tuple[int, int]:
    """How many bytes and words a text has."""
    with Path(path).open(encoding="utf-8", errors="replace") as lines:
        return Path(path).stat().st_size, sum(len(line.split()) for line in lines)


def figures(shards: Sequence[Shard], found: Sequence[Found], meter: LossMeter, top: int) -> dict[str, Any]:
    """All that there is to say of shards and of their sum."""
    rows = sum(shard.rows for shard in shards)
    costliest = [(token, shard.path) for shard, part in zip(shards, found, strict=True) for token in part.costliest]
    costliest.sort(key=lambda token: -token[0].cost)
    return {
        "files": [path for shard in shards for path in (shard.path, shard.targets) if path],
        "kind": shards[0].kind,
        "shape": shards[0].shape if len(shards) == 1 else (rows, shards[0].shape[-1]),
        "dtype": ", ".join(dict.fromkeys(shard.dtype for shard in shards)),
        **_figures(found, meter),
        "perplexity_interval": meter.perplexity_interval,
        "bits_per_token": meter.bits_per_token,
        "n_bytes": meter.n_bytes,
        "n_words": meter.n_words,
        "bits_per_byte": meter.bits_per_byte,
        "word_perplexity": meter.word_perplexity,
        "costliest": [
            {"file": path, "position": token.position, "target": token.target, "text": token.text}
            | {"loss": token.loss, "probability": _probability(token.loss)}
            for token, path in costliest[:top]
        ],
        "shards": [
            {"file": shard.path, "shape": shard.shape, **_figures([part], part.meter)}
            for shard, part in zip(shards, found, strict=True)
        ],
    }


def _figures(found: Sequence[Found], meter: LossMeter) -> dict[str, Any]:
    """What is said of a shard and of all."""
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


def compare(
    base: ScoresFile,
    other: ScoresFile,
    targets: str | None,
    ignore_index: int,
    definitions: Literal["exact", "llama.cpp"],
    workers: int | None,
    advance: Callable[[int], None],
) -> Comparison:
    """Compare two files, block by block; targets are the base's own where it has any."""
    shape = base.rows, base.shape[-1]
    if (other.rows, other.shape[-1]) != shape:
        got = f"holds {other.rows} rows of {other.shape[-1]} classes"
        fits = f"hold {shape[0]} rows of {shape[1]}, as {base.path} does"
        _arrays.fail("content", path=other.path, got=got, fits=fits)
    ids = base.targets
    if targets is not None:
        ids = npy.open_array(targets)
        if base.targets is not None and not np.array_equal(ids.reshape(-1), base.targets.reshape(-1)):
            _arrays.fail("content", path=targets, got="holds other targets", fits=f"hold those of {base.path} if any")
    elif ids is None:
        ids = other.targets
    if ids is None:
        _arrays.fail("content", path=base.path, got="holds no targets", fits="hold them, or come with --targets")
    with _naming(base.path, targets):
        if ids.size == shape[0]:
            ids = ids.reshape(-1)
        check(shape, base.kind, ids, ignore_index, soft=False)
    meter = ComparisonMeter(definitions=definitions, ignore_index=ignore_index, workers=workers)
    most_rows = max(1, min(_BLOCK_BYTES // (max(base.row_bytes, other.row_bytes) or 1), _BLOCK_ROWS))
    seen = 0
    for block, beside in _in_step(base.blocks(most_rows), other.blocks(most_rows)):
        logits = _log(block) if base.kind == "probs" else block
        if base.kind == "logits" and definitions == "llama.cpp":  # which takes log-probabilities as they are
            logits = log_softmax(block.astype(np.float32) if block.itemsize < 4 else block)
        others = _log(beside) if other.kind == "probs" else beside
        check_map(ids)
        meter.update(logits, others, ids[seen : seen + len(block)])
        seen += len(block)
        advance(block.nbytes + beside.nbytes)
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
        self._shards = [_identity(shard) for shard in shards] if path else []
        self._scored = [math.prod(shard.batch(options)) for shard in shards]
        self.found: dict[int, Found] = {}
        if path and Path(path).exists():
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


def _identity(shard: Shard) -> dict[str, Any]:
    """What a shard is told from others by, and from itself before it changed."""
    targets = shard.targets and {**_stamp(shard.targets), "start": shard.start}
    return {**_stamp(shard.path), "targets": targets}


def _stamp(path: str) -> dict[str, Any]:
    """Where a file or a directory is, how large, and when it was last changed."""
    files = [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]
    stats = [file.stat() for file in files]
    return {
        "path": str(Path(path).absolute()),
        "size": sum(stat.st_size for stat in stats),
        "mtime_ns": max(stat.st_mtime_ns for stat in stats),
    }
