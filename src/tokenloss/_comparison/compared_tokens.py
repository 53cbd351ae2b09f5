"""The base of all results of compared tokens: counts, names in files, and columns of tokens and sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._core.result import Result, in_files, places_in, rows_of
from tokenloss._core.signature import signature_of
from tokenloss._statistics.sequences import places_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, IntArray


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ComparedTokens(Result):
    """Counts that results of compared tokens have. The docstrings of subclasses get the attributes of their base.

    Attributes
    ----------
    count : int
        Number of tokens that are compared.
    is_clustered : bool
        Whether errors are clustered by sequence: with sequences, unless all tokens are in a single one.
    interval_factor : float
        Number of standard errors from a mean to each end of its 95 % confidence interval, as of
        `LossMeter.interval_factor`.
    """

    _errors_in_files: ClassVar[Mapping[str, Sequence[str]]] = {}  # of estimates, if not only the standard error
    _of_base: ClassVar[tuple[str, ...]] = ()  # statistics that are the same for all candidates of one base
    # the parts that people see of one or several results of this type, by the name of the candidate
    _shown_of: ClassVar[staticmethod[[Mapping[str, Any]], Shown]]
    _role: ClassVar[str] = "model"  # the name of a candidate that has none

    count: int
    is_clustered: bool
    interval_factor: float
    sequences: dict[str, Array] | None
    _segment_ids: IntArray | None = None  # of all positions
    # further values in files, such as the names of the compared files, which `==` does not compare
    _about: dict[str, Any] = field(default_factory=dict, compare=False)
    _signed: dict[str, Any] = field(default_factory=dict, compare=False)  # fields of the signature

    def __init_subclass__(cls) -> None:
        """Put the attributes of the base class into the docstring of a subclass, before its own."""
        line = "-" * len("Attributes") + "\n"
        shared = (cls.__mro__[1].__doc__ or "").partition(line)[2].rstrip()
        cls.__doc__ = (cls.__doc__ or "").replace(line, f"{line}{shared}\n", 1)

    @property
    def n_sequences(self) -> int:
        """The number of sequences with any such token; 0 without sequences."""
        return 0 if self.sequences is None else self.sequences["count"].size

    @property
    def signature(self) -> str:
        """A line to publish with the values, which says how they were computed as far as that is known."""
        return signature_of(**self._signature_fields())

    def _signature_fields(self) -> dict[str, Any]:
        """Fields of its signature."""
        unit = "sequence" if self.is_clustered else "token"
        return {"unit": unit, "tokens": self.count, "sequences": self.n_sequences or None} | self._signed

    def columns(self) -> dict[str, Array]:
        """Columns of a table that has a row for each token.

        Returns
        -------
        dict of 1-D arrays
            By name, as the attributes. First come `sequence` and `position`, where sequences were given: the number of
            the sequence, and the place in it, from 0; -1 outside of any. Else, if the batch has several axes, they are
            the index along its first axis, and the place in the others in C order.
        """
        arrays, ids = self._arrays(), self._segment_ids
        places = places_in(next(iter(arrays.values())).shape) if ids is None else places_of(ids)
        return places | {name: array.reshape(-1) for name, array in arrays.items()}

    def _arrays(self) -> dict[str, Array]:
        """The arrays that have an element for each token, by name."""
        values = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def _statistics(self) -> dict[str, Any]:
        """Statistics, quantiles, texts and tables by name, without the arrays and the table of sequences."""
        values = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "sequences"}
        counts = {"count": self.count, "n_sequences": self.n_sequences}
        return counts | {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}

    def _figures(self) -> dict[str, Any]:
        """All values, by their names in files."""
        values = in_files(self._statistics(), self._errors_in_files)
        if self._has_sequences:
            values["sequences"] = rows_of(self.sequences or {})
        # first for the order of the keys, and last since these values take precedence
        return self._about | values | {"signature": self.signature} | self._about

    @property
    def _has_sequences(self) -> bool:
        """Whether JSON and CSV include a table of sequences."""
        return self.sequences is not None

    def _rows(self) -> list[dict[str, Any]]:
        """The values, as the one row of a table."""
        return [self._figures()]

    def _shown(self) -> Shown:
        """Tables of the figures."""
        return self._shown_of({self._about.get("name", self._role): self})
