"""The base of all results of compared tokens: counts, names in files, and columns of tokens and sequences."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import numpy as np

from tokenloss._core.result import Result, in_files, places_in, rows_of
from tokenloss._core.signature import signature_of
from tokenloss._statistics.groups import Groups, check_groups, columns_of_groups
from tokenloss._statistics.sequences import places_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, BoolArray, IntArray

_WITH_ERRORS = ("loss_difference", "kl", "kl_bound", "same_top", "difference", "k3", "acceptance")  # means of groups


class About(TypedDict, total=False):
    """Facts about the compared files, by their keys in JSON; empty for results of arrays."""

    name: str  # of the candidate
    base: str  # the files of the base, and of the candidate, as tables name them
    file: str
    trainer: str  # in place of these where log-probabilities of tokens are compared, as is `sampler`
    sampler: str
    part: str  # of responses beside log-probabilities
    size: int | None  # bytes of the candidate's model
    kind: str
    base_kind: str
    files: list[str]  # each file of the base
    shape: tuple[int, int]
    classes: int | Literal["all"] | None
    n_without_next: int
    n_ignored: int
    window: int
    stride: int
    n_context: int
    head: dict[str, Any]  # how hidden states became logits
    base_head: dict[str, Any]
    norm_seems_missing: bool
    fits_better_shifted: bool
    by_token_type: list[dict[str, Any]]
    by: str  # how tokens are grouped, if they are
    groups: list[dict[str, Any]]
    sequences: list[dict[str, Any]]  # in place of the table of sequences: with the file of each, and its number there


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
        Number of standard errors from a mean to each end of its 95 % confidence interval, as in
        `LossMeter.interval_factor`.
    """

    _errors_in_files: ClassVar[Mapping[str, Sequence[str]]] = {}  # of estimates, if not only the standard error
    _of_base: ClassVar[tuple[str, ...]] = ("by",)  # statistics that are the same for all candidates of one base
    _role: ClassVar[str] = "model"  # the name of a candidate that has none

    count: int
    is_clustered: bool
    interval_factor: float
    sequences: dict[str, Array] | None
    _segment_ids: IntArray | None = None  # of all positions
    _about: About = field(default_factory=About, compare=False)
    # fields of the signature, as `signature_of` takes them, and marks of `signed_of` in `metrics.py`
    _signed: dict[str, Any] = field(default_factory=dict, compare=False)

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

    @property
    def groups(self) -> dict[str, Array] | None:
        """The table of the groups that were requested from `compare_files`, as `by` returns it; None without groups."""
        return columns_of_groups(self._about["groups"]) if "groups" in self._about else None

    def by(self, groups: ArrayLike) -> dict[str, Array]:
        """Means over groups of positions, such as types of tokens.

        Parameters
        ----------
        groups : array of integers, bool or text
            Label of the group of each position, broadcast over the batch.

        Returns
        -------
        dict of 1-D arrays
            Columns of a table that has a row for each group with any included position: "group" (its label, in
            ascending order), "count", with sequences "n_sequences", and means over its included positions: for
            scores "loss", "base_loss", "loss_difference", "kl", "delta_p", "same_top", and further divergences; for
            responses "kl_bound" in place of "kl", and "same_top" of the tokens for which it is known; for log-
            probabilities "difference" and "k3"; for drafts "acceptance". Means of differences, divergences and shares
            have standard errors, such as "kl_stderr". With sequences, these are clustered by sequence, unless the group
            has tokens of a single one.

        Raises
        ------
        TypeError, ValueError
            If `groups` has another dtype or shape.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import compare
        >>> comparison = compare(np.zeros((3, 2)), [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [0, 0, 1])
        >>> table = comparison.by(["word", "number", "word"])
        >>> table["group"].tolist(), table["count"].tolist(), table["kl"].round(4).tolist()
        (['number', 'word'], [1, 2], [0.1201, 0.2169])
        """
        mask: BoolArray = vars(self)["kept"]
        return group_table(self, check_groups(groups, mask.shape), mask)

    def _grouped(self) -> dict[str, Array]:
        """The arrays that groups average, by the name of the mean."""
        return {}

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each token.

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

    def _facts(self) -> dict[str, Any]:
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
        return [self._facts()]

    @staticmethod
    @abstractmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        """The parts that people see of one or several results of this type, by the name of the candidate."""

    def _shown(self) -> Shown:
        """Tables of the metrics."""
        return self._shown_of({self._about.get("name", self._role): self})


def included(mask: BoolArray, segment_ids: IntArray | None) -> tuple[Array, IntArray | None]:
    """Index of the positions of the mask, in the order of their sequences if these are given, and their numbers."""
    if segment_ids is None:
        return mask, None
    index = np.flatnonzero(mask)
    index = index[np.argsort(segment_ids[index], kind="stable")]  # sorted once, instead of for each sum
    return index, segment_ids[index]


def group_table(comparison: Any, labels: Array, mask: BoolArray) -> dict[str, Array]:
    """Columns of a table of groups of the positions of the mask, given the label of each position."""
    index, ids = included(mask.reshape(-1), comparison._segment_ids)
    labels = labels.reshape(-1)[index]
    groups, columns = Groups(labels, ids), dict[str, Any]()
    arrays = comparison._grouped().items()
    values = {name: array.reshape(-1)[index].astype(np.float64, copy=False) for name, array in arrays}
    known = comparison.is_top_known.reshape(-1)[index] if hasattr(comparison, "is_top_known") else np.True_
    for name, own in values.items():
        of, rows = groups, np.arange(groups.labels.size)
        if name == "same_top" and not known.all():
            of = Groups(labels[known], None if ids is None else ids[known])
            own, rows = own[known], np.searchsorted(groups.labels, of.labels)
        sums = {name: of.means(own), f"{name}_stderr": of.stderrs(own) if name in _WITH_ERRORS else None}
        for key, column in sums.items():
            if column is not None:
                columns[key] = np.full(groups.labels.size, np.nan)
                columns[key][rows] = column
    counts = {"count": groups.count} | ({} if ids is None else {"n_sequences": groups.n_sequences})
    return {"group": groups.labels, **counts, **columns}
