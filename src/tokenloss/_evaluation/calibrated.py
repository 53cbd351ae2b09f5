"""The calibration of the tokens of files and blocks, and of each model of a comparison."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import as_float_array, without_bfloat16
from tokenloss._core.errors import named, refuse, with_file_names
from tokenloss._evaluation.plan import rows_per_block
from tokenloss._evaluation.rows import SHIFT_SAMPLE, RowReader, scores_of_kind
from tokenloss._evaluation.sequences import CALIBRATED, joined_tokens
from tokenloss._scores.losses import natural_logs
from tokenloss._statistics.bins import Tokens
from tokenloss._statistics.calibration import class_probs
from tokenloss._statistics.reliability import FEW_CLASSES, calibration_of, fit_temperature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Columns
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.run import Run, Work
    from tokenloss._evaluation.shards import Shard
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss._statistics.reliability import Calibration


def calibrated_block(block: Any, scores: TokenScores, moments: Columns, kind: str) -> Columns:
    """The columns of the scored tokens of a `RowBlock`; "probs" has a token's classes, if few, then the next's."""
    rows = np.flatnonzero(scores.kept)
    columns = {"target": block.ids.astype(np.int64), "segment_ids": block.sequences, **vars(scores), **moments}
    own = {name: columns[name][rows] for name in CALIBRATED if name in columns}
    few = block.scores.shape[-1] <= FEW_CLASSES
    probs = class_probs(without_bfloat16(*as_float_array(kind, block.scores))[rows], kind).T if few else np.empty(0)
    return own | {"probs": probs.reshape(-1)}


def calibration_of_tokens(columns: Columns, **options: Any) -> Calibration:
    """The calibration of joined tokens."""
    probs = columns["probs"]
    few = {"probs": np.ascontiguousarray(probs.reshape(columns["nll"].size, -1).T)} if probs.size else {}
    known = {name: columns[name] for name in CALIBRATED[:6] if columns[name].size == columns["nll"].size}
    return calibration_of(known | few, **options)


def calibration_of_files(
    shards: Sequence[Shard], run: Run, options: Options, model: int = 0, tokens: Columns | None = None
) -> Calibration:
    """The calibration of a model, whose files are read again for each step to the best temperature.

    `tokens` are those of a pass that was made already.
    """
    kind, name = shards[0].models[model].kind, shards[0].models[model].path

    def read(scale: float | None) -> Columns:
        function = functools.partial(_calibrated_shard, options=options._replace(by=None), scale=scale)
        units = [_Unit(shard, model) for shard in shards]
        label = f"{name}: calibration" + ("" if scale is None else f" at temperature {1 / scale:.4g}")
        joined = joined_tokens(run.again(function, units, label), are_numbered=shards[0].shares_numbers)
        assert joined is not None
        return joined

    tokens = read(None) if tokens is None else tokens

    def at_scale(scale: float) -> Columns:
        scaled = tokens if scale == 1 and kind == "logits" else read(scale)
        return scaled | {"prediction": scaled["confidence"]}

    fit = fit_temperature(at_scale, Tokens(tokens["nll"].size, None, tokens["segment_ids"]))
    return calibration_of_tokens(tokens, fit=fit)


class _Unit(NamedTuple):
    """A shard, one model of which is read."""

    shard: Shard
    model: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the model's scores."""
        return self.shard.models[self.model].n_bytes

    def absolute(self) -> _Unit:
        """The unit with absolute paths, for a process in another directory."""
        return self._replace(shard=self.shard.absolute())


def _calibrated_shard(unit: _Unit, work: Work, options: Options, scale: float | None) -> Columns:
    """The columns of a shard's tokens: as `calibrated_block` has them, or those of its logits at a scale."""
    shard, model = unit
    check_calibrated(shard, model)
    opened = work.handles.open_shard(shard, options)
    file = (opened.file, *opened.others)[model]
    shard, opened = shard._replace(models=shard.models[model : model + 1]), opened._replace(file=file, others=())
    reader = RowReader(shard, opened, options, rows_per_block(file.row_bytes), work.advance, sampled=SHIFT_SAMPLE)
    parts = []
    for block in reader:
        rows, kind, moments = block.scores, file.kind, dict[str, Any]()
        if scale is not None and kind == "probs":
            rows = natural_logs(without_bfloat16(*as_float_array(kind, rows)), np.repeat(block.kept, rows.shape[-1]))
        with with_file_names(file.path, block.place):
            scores = scores_of_kind(
                rows, block.ids, kind=kind if scale is None else "logits", where=block.kept, top_k=0, moments=moments,
                ignore_index=options.ignore_index, workers=work.workers, logit_scale=scale or 1.0,
            )  # fmt: skip
        parts.append(calibrated_block(block, scores, moments, kind))
    columns = joined_tokens(parts, are_numbered=True)
    assert columns is not None
    return columns


def check_calibrated(shard: Shard, model: int = 0) -> None:
    """Refuse sources that do not determine a calibration."""
    kind, by = shard.models[model].kind, named("calibration", True)
    if kind in ("hidden_states", "sketch"):
        what = "hidden states" if kind == "hidden_states" else "a sketch"
        refuse(shard.models[model].path, f"contains {what}", f"contain scores of all classes, for {by}")
    if shard.target_type != "class ids":
        what = "distributions as targets" if shard.target_type == "distributions" else "no targets"
        refuse(shard.path, f"has {what}", f"contain class ids, for {by}")
