"""Writes the sketch of a model from its files of scores or of hidden states."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import refuse, with_file_names
from tokenloss._core.result import Shown, Table
from tokenloss._core.text import count_of, unit_of_bytes
from tokenloss._evaluation.compare import bytes_per_row, first_numbers, projected
from tokenloss._evaluation.options import Options
from tokenloss._evaluation.plan import planned, rows_per_block
from tokenloss._evaluation.rows import RowReader
from tokenloss._evaluation.run import Settings, opened
from tokenloss._evaluation.sink import schema_of
from tokenloss.formats.sketch import checked_path, checked_sizes
from tokenloss.formats.sketch_file import sketch_writer
from tokenloss.formats.sources import require, with_shift

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.types import Need
    from tokenloss._evaluation.run import Work
    from tokenloss._evaluation.shards import Shard
    from tokenloss.formats.scores import Scores
    from tokenloss.formats.sketch_file import SketchWriter


class Written(NamedTuple):
    """The size and content of a written sketch."""

    path: str
    rows: int
    n_scored: int
    classes: int
    top: int
    tail: int
    seed: int
    n_bytes: int

    def shown(self) -> Shown:
        """The table."""
        unit, scale = unit_of_bytes(self.n_bytes)
        each = self.n_bytes / max(self.rows, 1)
        share = f"{each:,.0f} bytes for a row, 1/{2 * self.classes / each:.3g} of its logits in float16"
        rows = [
            ("rows", f"{self.rows:,}", f"{count_of(self.n_scored, 'token')} scored"),
            ("classes", f"{self.classes:,}", f"{self.top} most likely, {self.tail} drawn from the others"),
            ("size", f"{self.n_bytes / scale:.3g} {unit}", share),
        ]
        return Shown(self.path, "", [Table(rows)])


def sketch_files(
    source: Scores, path: Any, *, top: int, tail: int, seed: int, append: bool, shift: bool | None,
    progress: bool = False, workers: int | None = None,
) -> Written:  # fmt: skip
    """Write the sketch of files with targets; options as in `write_sketch`, and `shift` as in `evaluate`."""
    place, sizes = checked_path(path), checked_sizes(top, tail, seed)
    needs: tuple[Need, ...] = ("rows", "plan")
    for need in needs:
        require(source, need, "sketch")
    source = with_shift(source, shift)
    if str(Path(place).resolve()) in {str(Path(one).resolve()) for one in source.files}:
        refuse(place, "is read", "be another file, to be written")
    options = Options.of(source.token_options)
    with opened([source], Settings.checked((), None, None, progress, workers), {"command": "sketch"}) as run:
        shards = planned(source, (), options, run.handles)
        numbers = dict(zip((one.path for one in shards), first_numbers(shards, options, run.handles), strict=True))
        with sketch_writer(place, *sizes, append, run.workers) as writer:
            before = 0 if shards[0].shares_numbers else writer.n_sequences
            first = {name: before + number for name, number in numbers.items()}
            add = functools.partial(_add_shard, options=options, writer=writer, first=first)
            run.map(add, shards, schema_of((), ()))
    n_bytes = Path(place).stat().st_size
    return Written(place, writer.n_rows, writer.n_kept, shards[0].shape[-1], *sizes, n_bytes)


def _add_shard(shard: Shard, work: Work, options: Options, writer: SketchWriter, first: Mapping[str, int]) -> _Added:
    """Add the rows of a shard, whose sequences are numbered from `first` on."""
    opened = work.handles.open_shard(shard, options)
    file = opened.file
    if shard.target_type == "distributions":
        refuse(shard.targets_path, "contains distributions as targets", "contain class ids, which a sketch keeps")
    reader = RowReader(shard, opened, options, rows_per_block(bytes_per_row(file)), work.advance)
    for block in reader:
        with with_file_names(file.path, block.place):
            rows = block.scores if file.lm_head is None else projected(block.scores, file.lm_head)
            kind = file.kind if file.lm_head is None else "logits"
            numbers = np.where(block.sequences < 0, -1, block.sequences + first[shard.path])
            writer.add(rows, kind, block.ids, block.kept, numbers if opened.sequences.exist else None)
    return _Added(math.prod(shard.shape[:-1]))


class _Added(NamedTuple):
    """The number of added rows."""

    n_tokens: int
