"""Pairs the shards of a base with those of candidates, in order: both hold the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core.errors import raise_error
from tokenloss._evaluation.options import by_number
from tokenloss._evaluation.plan import have_same_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.plan import Shard


def paired(base: Sequence[Shard], candidates: Sequence[Sequence[Shard]], options: Options) -> list[Shard]:
    """Give each shard of the base the shards of the candidates that belong to it; refuse those that do not fit."""
    numbers = _numbers(base)
    for side, of_candidate in zip(candidates, options.others, strict=True):
        if len(side) != len(base):
            got, fits = f"is shard {len(side)} of {len(side)}", f"be one of {len(base)}, as {base[-1].path} is"
            raise_error("content", path=side[-1].path, got=got, fits=fits)
        of_side = _numbers(side)
        for i, (shard, other) in enumerate(zip(base, side, strict=True)):
            if numbers and of_side and numbers[i] != of_side[i]:
                got = f"would be compared with {shard.path}"
                raise_error("content", path=other.path, got=got, fits="have the same number in its name")
            if options.lm_head == of_candidate.lm_head and options.lm_head and shard.shape[-1] != other.shape[-1]:
                got = f"has another width than {shard.path}, both read as hidden states for {shard.head_files[0]}"
                fits = "have the same; base_kind is that of a base of scores, base_lm_head a base's own head"
                raise_error("content", path=other.path, got=got, fits=fits)
            _check_shapes(shard, other, options)
    others = zip(*candidates, strict=True)
    return [shard._replace(others=of_shard) for shard, of_shard in zip(base, others, strict=True)]


def _check_shapes(shard: Shard, other: Shard, options: Options) -> None:
    """Refuse a shard with another number of rows, or of classes if all classes are compared."""
    (rows, classes), (other_rows, other_classes) = ((side.rows, side.shape[-1]) for side in (shard, other))
    all_are_compared = options.classes is None and options.temperature is None
    if other_rows != rows or (other_classes != classes and all_are_compared):
        got = f"holds {other_rows} rows of {other_classes} classes"
        fits = f"hold {rows} rows of {classes}, as {shard.path} does"
        if other_rows == rows and min(classes, other_classes):
            least = min(classes, other_classes)
            fits += f"; --classes {least} (classes={least}) compares the first {least} of both"
        elif other_rows != rows and other_classes != classes:
            fits += "; models with different tokenizers need --text, --tokenizer-a and --tokenizer-b (compare_texts)"
        raise_error("content", path=other.path, got=got, fits=fits)
    for side in (shard, other):
        if classes != other_classes and side.shape[-1] < (options.classes or 0):
            got, fits = f"holds {side.shape[-1]} classes", f"hold the first {options.classes} that are to be compared"
            raise_error("content", path=side.path, got=got, fits=fits)
    batch, other_batch = shard.shape[:-1], other.shape[:-1]
    if not have_same_rows(batch, other_batch) or (options.shift and batch != other_batch):
        got, fits = f"holds {other.kind} of shape {other.shape}", f"have rows of shape {batch}, as {shard.path} does"
        raise_error("content", path=other.path, got=got, fits=fits + ", to be shifted" * bool(options.shift))


def _numbers(side: Sequence[Shard]) -> list[tuple[str | int, ...]] | None:
    """The numbers by which the names of the files differ; None if they differ by something else."""
    keys = [by_number(Path(shard.path).name) for shard in side]
    if len({key[::2] for key in keys}) > 1:
        return None
    varying = [column for column in zip(*keys, strict=True) if len(set(column)) > 1]
    return list(zip(*varying, strict=True)) or None
