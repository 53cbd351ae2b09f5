"""The evaluation of files: plans shards, scores them here or on a cluster, and gives their tokens to sinks."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING

from tokenloss._core import config
from tokenloss._evaluation import score
from tokenloss._evaluation.checkpoint import Checkpoint
from tokenloss._evaluation.parts import Parts
from tokenloss._evaluation.plan import plan
from tokenloss._evaluation.progress import Progress
from tokenloss._evaluation.responses import (
    are_responses,
    check_names,
    check_parts,
    lengths_of_text,
    plan_responses,
    score_responses,
    scored_shards,
)
from tokenloss._evaluation.sink import check_files, finish_sinks, open_sinks, token_function
from tokenloss._evaluation.summary import text_length
from tokenloss._evaluation.token_bytes import with_text, with_token_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenloss._evaluation.checkpoint import ResultT
    from tokenloss._evaluation.options import Inputs, Options, Settings
    from tokenloss._evaluation.plan import Shard
    from tokenloss._evaluation.results import Evaluation, ShardResult
    from tokenloss._evaluation.sink import Sink


def evaluate_files(inputs: Inputs, options: Options, settings: Settings, outputs: Sequence[Sink]) -> Evaluation:
    """Score all tokens of files. Sinks are opened before any token, and finished in order."""
    check_files(outputs, settings.state, inputs.by_identity())
    top_k = max((output.top_k for output in outputs), default=0)
    function: Callable[..., ShardResult]
    size: tuple[tuple[int, ...] | None, int | None] = None, None
    if of_responses := are_responses(inputs.scores):
        shards, function = plan_responses(inputs.scores, options), score_responses
    else:
        shards = plan(inputs.scores, inputs.targets, options, inputs.segment_ids)
        if settings.tokenizer is not None:
            shards = with_token_bytes(shards, options, settings.tokenizer, inputs.text)
        function = score.score_shard
        top_k = min(top_k, shards[0].shape[-1])
        size = shards[0].batch, sum(shard.scored_rows for shard in shards)
    n_bytes, n_words = settings.n_bytes, settings.n_words
    if inputs.text is not None:
        n_bytes, n_words = text_length(inputs.text, settings.words)
        n_bytes = n_bytes if settings.tokenizer is None else 0  # those of the tokens that are scored count
    words = settings.words if inputs.text is not None else None
    with contextlib.ExitStack() as stack:
        has_text = any(shard.has_text for shard in shards)
        open_sinks(stack, outputs, *size, top_k, of_responses, has_text, tokenizer=settings.tokenizer)
        start = time.perf_counter()
        results, n_read = score_shards(function, shards, options, settings, outputs, top_k)
        seconds = time.perf_counter() - start
        results = [with_text(result, settings.tokenizer) for result in results]
        if of_responses:
            check_parts(shards, results)
            check_names(inputs.scores, results)
            shards = scored_shards(shards, results)
            if isinstance(n_bytes, int) and not n_bytes:
                n_bytes = lengths_of_text(results)
        evaluation = Parts(shards, results, options, words).evaluation((n_bytes, n_words), seconds, n_read)
        finish_sinks(outputs, evaluation.figures, evaluation)
        return evaluation


def score_shards(
    function: Callable[..., ResultT], shards: list[Shard], options: Options, settings: Settings,
    outputs: Sequence[Sink], top_k: int,
) -> tuple[list[ResultT], int]:  # fmt: skip
    """Score the shards that the checkpoint lacks; return the results of all, and the number of bytes that were read."""
    checkpoint: Checkpoint[ResultT] = Checkpoint(settings.state, options, shards)
    options = options._replace(top=checkpoint.top)
    left = [number for number in range(len(shards)) if number not in checkpoint.results]
    chosen = [shards[number] for number in left]
    total = sum(shard.n_bytes for shard in chosen)
    with Progress(total if settings.progress else None) as progress:
        if settings.scheduler:
            results = _score_on_cluster(function, chosen, options, settings, settings.scheduler)
        else:
            workers = settings.workers or config.default_workers()
            results = (
                (i, function(shard, options, workers, add, top_k, progress.advance))
                for i, shard in enumerate(chosen)
                for add in [token_function(outputs, i, tokenizer=settings.tokenizer)]
            )
        for i, result in results:
            checkpoint.add(left[i], result)
            if settings.scheduler:
                progress.advance(chosen[i].n_bytes)
    n_read = sum(shard.size or 0 for shard in chosen)
    n_read += sum(checkpoint.results[number].n_tokens * shards[number].row_bytes for number in left)
    return [checkpoint.results[number] for number in range(len(shards))], n_read


def _score_on_cluster(
    function: Callable[..., ResultT], shards: list[Shard], options: Options, settings: Settings, scheduler: str
) -> Iterator[tuple[int, ResultT]]:
    """Score shards on a cluster."""
    from tokenloss._evaluation.cluster import map_shards  # needs Dask

    function = functools.partial(function, options=options.with_absolute_paths(), workers=settings.workers or 1)
    try:
        yield from map_shards(function, [shard.with_absolute_paths() for shard in shards], scheduler)
    except Exception as error:  # a worker may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{scheduler}: {reason}") from error
