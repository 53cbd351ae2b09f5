"""Models compared with their base block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import OF_TARGETS, check_definitions, join, new_columns, pair_columns, share
from tokenloss._comparison.comparison import Comparison, comparison_of
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.metrics import signed_of
from tokenloss._core.arguments import further_divergences
from tokenloss._core.errors import raise_error
from tokenloss._core.signature import merged_parts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from tokenloss._core.types import ArrayLike, Columns, Kind


class ComparisonMeter:
    """Compares models with their base block by block, for logits that are never all in memory at once.

    Blocks may come from an engine, or be parts of arrays on disk, which `numpy.load` maps with `mmap_mode`. The meter
    keeps 67 bytes per position, plus 8 with sequence numbers and 16 if `classes` leaves out some classes. Each further
    candidate adds 34 bytes, plus 8 if `classes` leaves out some of its classes; each divergence other than "kl" adds 8
    bytes per candidate. Blocks must come in the order of the text and may have any size: the result is bitwise
    identical however a text or a sequence is split. Only one thread may update a meter at a time.

    Parameters
    ----------
    definitions, divergences, classes, ignore_index, workers
        As in `compare`.

    Raises
    ------
    ValueError
        If `definitions` or `divergences` is invalid, or if they do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import ComparisonMeter
    >>> meter = ComparisonMeter()
    >>> for shift in (0.5, 1.0):
    ...     meter.update(np.zeros((2, 3)), [[shift, 0, 0], [0, shift, 0]], [0, 1])
    >>> meter.result()
    Comparison(mean_kl=0.07430 ± 0.0261, count=4, perplexity=1.95993, base_perplexity=3.00000, same_top=0.5000)

    Several candidates, each compared independently:

    >>> meter = ComparisonMeter()
    >>> meter.update(np.zeros((2, 3)), {"q4": [[1, 0, 0], [0, 1, 0]], "q8": [[0.1, 0, 0], [0, 0.1, 0]]}, [0, 1])
    >>> {name: round(comparison.mean_kl, 4) for name, comparison in meter.results().items()}
    {'q4': 0.1195, 'q8': 0.0011}
    """

    __module__ = "tokenloss"

    def __init__(
        self,
        *,
        definitions: Literal["exact", "llama.cpp"] = "exact",
        divergences: Sequence[str] = ("kl",),
        classes: int | None = None,
        ignore_index: int | None = -100,
        workers: int | None = None,
    ) -> None:
        self._definitions = check_definitions(definitions)
        self._divergences = further_divergences(divergences, self._definitions)
        self._options: dict[str, Any] = {"classes": classes, "ignore_index": ignore_index, "workers": workers}
        self._parts: dict[str, list[Columns]] = {}
        self._signed: dict[str, dict[str, Any]] = {}  # of each candidate, fields of its signature

    def update(
        self,
        base_logits: ArrayLike,
        logits: ArrayLike | Mapping[str, ArrayLike],
        targets: ArrayLike | None = None,
        *,
        kind: Kind | None = None,
        base_kind: Kind | None = None,
        axis: int = -1,
        where: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> None:
        """Compare the next positions.

        Sequences keep their numbers across calls, so a sequence may continue in the next block. Positions with negative
        numbers belong to no sequence. For several candidates, `logits` is a mapping by name, with the same names in all
        calls.

        Parameters
        ----------
        base_logits, logits : arrays of one shape (..., V)
            Logits, or scores of another `kind`, as in `compare`: float16, bfloat16, float32 or float64.
        targets : array of integers, optional
            Class ids, in the shape of `logits` without its class axis: in all calls, or in none.
        kind, base_kind, axis, where, segment_ids
            As in `compare`.

        Raises
        ------
        IndexError, TypeError, ValueError
            If an argument is invalid; the meter is then unchanged.
        """
        others = logits if isinstance(logits, Mapping) else {"logits": logits}
        names = list(self._parts or others)
        if not names or set(names) != set(others):
            fits = "a mapping with the same names in all calls" if names else "an array, or a mapping of arrays"
            raise_error("option", name="logits", got=list(others), fits=f"{fits}: {names}" if names else fits)
        self._check_targets(targets is not None)
        columns = pair_columns(
            base_logits, others, targets, definitions=self._definitions, divergences=self._divergences, kind=kind,
            base_kind=base_kind, axis=axis, where=where, segment_ids=segment_ids, **self._options,
        )  # fmt: skip
        for name in names:
            self._parts.setdefault(name, []).append(columns[name])
            ids_and_classes = columns[name], self._options["classes"]
            signed = signed_of(base_logits, others[name], targets, *ids_and_classes, kind, base_kind)
            self._signed[name] = merged_parts(self._signed.get(name, {}), signed)

    def merge(self, other: ComparisonMeter) -> None:
        """Add the positions of another meter, as if they came next in the text.

        Sequences with the same number are one sequence, as in several calls of `update`. So several processes may
        compare the blocks of a text, and their meters may be pickled and merged in the order of the text.

        Parameters
        ----------
        other : ComparisonMeter
            The meter to add, with the same `definitions`, `divergences`, `classes` and candidates; it does not change.

        Raises
        ------
        TypeError
            If it is not a `ComparisonMeter`.
        ValueError
            If its options or candidates differ, or only one has targets; the meter is then unchanged.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import ComparisonMeter
        >>> meters = ComparisonMeter(), ComparisonMeter()
        >>> for meter, shift in zip(meters, (0.5, 1.0)):
        ...     meter.update(np.zeros((2, 3)), [[shift, 0, 0], [0, shift, 0]], [0, 1])
        >>> meters[0].merge(meters[1])
        >>> meters[0].result()
        Comparison(mean_kl=0.07430 ± 0.0261, count=4, perplexity=1.95993, base_perplexity=3.00000, same_top=0.5000)
        """
        if not isinstance(other, ComparisonMeter):
            raise_error("type", name="other", got=type(other).__name__, fits="a ComparisonMeter")
        for name, mine, theirs in (
            ("definitions", self._definitions, other._definitions),
            ("divergences", self._divergences, other._divergences),
            ("classes", self._options["classes"], other._options["classes"]),
        ):
            if mine != theirs:
                raise_error("option", name=f"{name} of other", got=theirs, fits=f"{mine!r}, as this meter's")
        if not other._parts:
            return
        if self._parts and other._parts.keys() != self._parts.keys():
            fits = f"the names of this meter: {[*self._parts]}"
            raise_error("option", name="the names of other", got=[*other._parts], fits=fits)
        self._check_targets(OF_TARGETS[0] in next(iter(other._parts.values()))[0])
        for name, parts in other._parts.items():
            self._parts[name] = [*self._parts.get(name, ()), *parts]
            self._signed[name] = merged_parts(self._signed.get(name, {}), other._signed[name])

    def _check_targets(self, are_given: bool) -> None:
        """Refuse targets after blocks without them, and the reverse."""
        for first, *_ in self._parts.values():
            if (OF_TARGETS[0] in first) != are_given:
                raise_error("sometimes", name="targets")

    def __eq__(self, other: object) -> bool:
        """Return whether both compared the same positions, regardless of how these were split into blocks."""
        if not isinstance(other, ComparisonMeter):
            return NotImplemented
        options = [(one._definitions, one._divergences, one._options["classes"]) for one in (self, other)]
        if options[0] != options[1]:
            return False
        mine, theirs = ({name: join(parts) for name, parts in meter._parts.items()} for meter in (self, other))
        return mine.keys() == theirs.keys() and all(
            mine[name].keys() == theirs[name].keys()
            and all(np.array_equal(mine[name][one], theirs[name][one], equal_nan=True) for one in mine[name])
            for name in mine
        )

    def result(self) -> Comparison:
        """Return the metrics of all positions so far.

        Returns
        -------
        Comparison
            With arrays of one dimension.

        Raises
        ------
        ValueError
            If there are several candidates.
        """
        if len(self._parts) > 1:
            raise_error("candidates", got=len(self._parts))
        return next(iter(self.results().values()), comparison_of(self._definitions, new_columns(0, self._divergences)))

    def results(self) -> Comparisons[Comparison]:
        """Return the metrics of all positions so far, for each candidate.

        Returns
        -------
        Comparisons
            A dict of `Comparison` by name; "logits" is the name of a candidate that was given as an array. All of them
            share the arrays of the base.
        """
        comparisons: Comparisons[Comparison] = Comparisons()
        first: Columns = {}
        for name, parts in self._parts.items():
            columns = share(join([new_columns(0, self._divergences), *parts]), first)
            first = first or columns
            comparisons[name] = comparison_of(self._definitions, columns, signed=self._signed[name])
        return comparisons
