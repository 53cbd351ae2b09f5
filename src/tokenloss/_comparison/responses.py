"""Comparisons of responses: the tokens of two files are paired, and their metrics computed from columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.paired import KL_QUANTILES, Mean, PairedLosses, paired_metrics, quantiles, sequence_table
from tokenloss._comparison.parity import COLUMNS as PARITY_COLUMNS
from tokenloss._comparison.parity import first_places, parity_of
from tokenloss._comparison.tables import responses_shown
from tokenloss._core.errors import named, raise_error, with_file_names
from tokenloss._core.result import formatted
from tokenloss._scores.divergence import topk_divergence_bound
from tokenloss.formats.responses.columns import join
from tokenloss.formats.rounding import Rounding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

    from tokenloss._core.estimate import Estimate
    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss.formats.responses import Response, Responses

_PENDING = 1 << 18  # listed classes that are compared at once
_OWN = 1 << 62  # the class of a token that is known only by its text

# results for each token, and what it is
COLUMNS = {
    "sequence": np.int64, "position": np.int64, "target": np.int64, "text": np.object_,
    "nll": np.float64, "base_nll": np.float64, "kl_bound": np.float64, "base_mass": np.float64,
    "mass": np.float64, "delta_p": np.float64, "is_same_top": np.bool_, "is_top_known": np.bool_, "kept": np.bool_,
    "is_bounded": np.bool_, "is_sentinel": np.bool_, "base_margin": np.float64, "margin": np.float64,
    "rounding": np.float64, "is_identical": np.bool_,
}  # fmt: skip


class Pair(NamedTuple):
    """A sequence as both models scored it: its number in the file of the base, its origin, and columns of its tokens.

    `tokens` are their ids (-1 where unknown) and text (None where unknown), `responses` those of both files, None in
    place of scores.
    Columns of a model are logprobs, is_sentinel, is_greedy, is_greedy_known, best (the most likely class), and top_ids
    and top_logprobs (the listed classes, the last of which is the token's own). Unknown classes are -1.
    """

    number: int
    origin: tuple[int, int, str | None, Any]  # its line in both files, the name of its request, and the label of groups
    tokens: tuple[Array, Array]
    responses: tuple[Response | None, Response | None]
    base: Columns
    other: Columns


class PairedFiles:
    """Two files of responses, matched by the names of requests if both have them, else by their order.

    `skipped` is the number of requests that failed in either file, after all pairs.
    """

    def __init__(self, base: Responses, other: Responses) -> None:
        if base.part != other.part:
            got = f"has log-probabilities of the part {other.part!r}"
            fits = f"have log-probabilities of the part {base.part!r}, as {base.path} does"
            fits += f"; or both come with {named('part', 'generated')}"
            raise_error("content", path=other.path, got=got, fits=fits)
        self.files = base, other
        self.skipped = 0

    def __iter__(self) -> Iterator[Pair]:
        """Match the responses, each of which waits for its partner."""
        by_name = all(map(_has_names, self.files))
        failed: tuple[set[Any], set[Any]] = set(), set()
        readers = [_keyed(file, by_name, own) for file, own in zip(self.files, failed, strict=True)]
        waiting: tuple[dict[Any, Any], dict[Any, Any]] = {}, {}
        numbers = [0, 0]
        open_sides = {0, 1}
        while open_sides:
            for side in sorted(open_sides):
                key, response = next(readers[side], (None, None))
                if response is None:
                    open_sides.discard(side)
                    continue
                mine = numbers[side], response
                numbers[side] += 1
                partner = waiting[1 - side].pop(key, None)
                if partner is None:
                    waiting[side][key] = mine
                    continue
                (number, base), (_, other) = (mine, partner) if side == 0 else (partner, mine)
                yield self._pair(number, base, other)
        self.skipped = len(failed[0] | failed[1])
        for side in (0, 1):
            unmatched = [response for key, (_, response) in waiting[side].items() if key[0] not in failed[1 - side]]
            if unmatched:
                _refuse_unmatched(self.files[side].path, self.files[1 - side].path, unmatched)

    def _pair(self, number: int, base: Response, other: Response) -> Pair:
        """Two responses, whose classes have the same numbers."""
        _check_tokens(base, other, self.files[0].path, self.files[1].path)
        label = other.label if base.label is None else base.label
        origin = base.line, other.line, base.custom_id or other.custom_id, label
        ids = np.where(base.ids >= 0, base.ids, other.ids)
        text = np.where([one is None for one in base.tokens], other.tokens, base.tokens)
        return Pair(number, origin, (ids, text), (base, other), *matched(base, other))


def compare_pairs(
    pairs: Iterator[Pair], paths: tuple[str, str]
) -> tuple[Columns, dict[int, tuple[int, int, str | None, Any]], list[Rounding]]:
    """Columns of all tokens in order, the origin of each sequence, and how both models' numbers are rounded."""
    parts: list[Columns] = [{name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}]
    origins: dict[int, tuple[int, int, str | None, Any]] = {}
    roundings = [Rounding(), Rounding()]
    pending: list[Pair] = []

    def flush() -> None:
        base, other = join([pair.base for pair in pending]), join([pair.other for pair in pending])
        for i, side in enumerate((base, other)):
            roundings[i] += Rounding.of(np.concatenate([side["logprobs"], side["top_logprobs"].reshape(-1)]))
        with with_file_names(*paths):
            columns = _columns(base, other, max(rounding.error for rounding in roundings))
        lengths = [len(pair.base["logprobs"]) for pair in pending]
        columns |= {
            "sequence": np.repeat([pair.number for pair in pending], lengths),
            "position": np.concatenate([np.arange(length) for length in lengths]),
            "target": np.concatenate([pair.tokens[0] for pair in pending]),
            "text": np.concatenate([pair.tokens[1] for pair in pending]),
        }
        parts.append(columns)
        pending.clear()

    n = width = 0  # tokens that are pending, and the length that all their lists get
    for pair in pairs:
        origins[pair.number] = pair.origin
        (size, k), (_, other_k) = pair.base["top_ids"].shape, pair.other["top_ids"].shape
        if pending and (n + size) * max(width, k, other_k) > _PENDING:
            flush()
            n = width = 0
        n, width = n + size, max(width, k, other_k)
        pending.append(pair)
    if pending:
        flush()
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    order = np.argsort(columns["sequence"], kind="stable")
    return {name: column[order] for name, column in columns.items()}, origins, roundings


# -- pairs of responses ------------------------------------------------------------------------------------------------


def _has_names(file: Responses) -> bool:
    """Whether the first request of a file has a `custom_id`."""
    first = next(iter(file), None)
    name = first.custom_id if first is not None else next((failed.custom_id for failed in file.failed), None)
    return name is not None


def _keyed(file: Responses, by_name: bool, failed: set[Any]) -> Iterator[tuple[tuple[Any, int], Response]]:
    """Responses with the name or the number of their request, and their choice; adds those that failed to `failed`."""
    number, seen_failed, names = -1, 0, set()
    line = choice = index = -1
    has_one = file.dialect == "llama.cpp"  # a choice in each response, which may be in a list on one line

    def add_failed() -> None:
        nonlocal number, seen_failed
        for request in file.failed[seen_failed:]:
            number += 1
            failed.add(request.custom_id if by_name else number)
        seen_failed = len(file.failed)

    for response in file:
        add_failed()
        is_next = response.line != line or response.choice <= choice or has_one
        number, index = (number + 1, 0) if is_next else (number, index + 1)
        line, choice = response.line, response.choice
        if not by_name:
            yield (number, index), response
            continue
        key = response.custom_id, response.choice
        if response.custom_id is None or key in names:
            got = "the request has no custom_id" if response.custom_id is None else f"{key[0]!r} comes twice"
            raise_error("record", path=file.path, line=line, got=got, fits="have its own, as other requests do")
        names.add(key)
        yield key, response
    add_failed()


def _refuse_unmatched(path: str, other: str, unmatched: list[Response]) -> NoReturn:
    """Raise an error that responses have no partner."""
    first = unmatched[0]
    name = f"choice {first.choice}" + (f" of {first.custom_id!r}" if first.custom_id is not None else "")
    more = f", and {len(unmatched) - 1} more have none" if len(unmatched) > 1 else ""
    raise_error("record", path=path, line=first.line, got=f"{name} has no partner in {other}{more}", fits="have one")


def _check_tokens(base: Response, other: Response, base_path: str, path: str) -> None:
    """Refuse responses whose tokens differ: by ids if both have them, else by text that is complete in both."""
    where = f"as on line {base.line} of {base_path}"
    if len(base.ids) != len(other.ids):
        got, fits = f"it has {len(other.ids)} tokens", f"have {len(base.ids)}, {where}"
        raise_error("record", path=path, line=other.line, got=got, fits=fits)
    by_id = (base.ids >= 0) & (other.ids >= 0)
    same = np.where(by_id, base.ids == other.ids, _equal(base.tokens, other.tokens))
    differs = ~same & (by_id | (_are_whole(base.tokens) & _are_whole(other.tokens)))
    differs |= base.is_prompt != other.is_prompt
    for i in np.flatnonzero(differs)[:1].tolist():
        ours, theirs = (
            f"id {response.ids[i]}" if by_id[i] and not same[i]
            else f"{response.tokens[i]!r} ({'prompt' if response.is_prompt[i] else 'generated'})"
            for response in (other, base)
        )  # fmt: skip
        got, fits = f"token {i} is {ours}", f"be {theirs}, {where}"
        raise_error("record", path=path, line=other.line, got=got, fits=fits)
    numbered = ~(np.isnan(base.logprobs) | np.isnan(other.logprobs))
    if numbered.any() and not same[numbered].any():
        got, fits = "its tokens cannot be checked", f"have ids or text, {where}: neither is in both"
        raise_error("record", path=path, line=other.line, got=got, fits=fits)


def _equal(texts: Array, others: Array) -> BoolArray:
    """Mask of the positions at which both texts are known and equal."""
    return np.array([a is not None and a == b for a, b in zip(texts, others, strict=True)], np.bool_)


def _are_whole(texts: Array) -> BoolArray:
    """Mask of the texts that are known and consist of whole characters."""
    return np.array([bool(text) and "\N{REPLACEMENT CHARACTER}" not in text for text in texts.reshape(-1)], np.bool_)


def matched(base: Response, other: Response, by_id: bool = False) -> tuple[Columns, Columns]:
    """Columns of both responses, as in `Pair`, in which the same class has the same number.

    Numbers are ids where both have them, or `by_id`. Otherwise they represent texts, which name no class if they are
    part of a character or come twice in a list.
    """
    both = base, other
    listed = [~np.isnan(response.top_logprobs) for response in both]
    own = np.where(base.ids >= 0, base.ids, other.ids)
    have_ids = all((response.top_ids[mask] >= 0).all() for response, mask in zip(both, listed, strict=True))
    if by_id or (have_ids and (any(mask.any() for mask in listed) or (own >= 0).all())):
        tops, has_order = [response.top_ids for response in both], True
    else:
        tops, has_order = _numbers_by_text(both), False
        own = np.full(len(own), _OWN)
    sides: list[Columns] = []
    for response, top, mask in zip(both, tops, listed, strict=True):
        classes = _without_twice(np.where(mask, top, -1))
        others = np.where(classes == own[:, None], -1, classes)  # both name the token itself, which comes last
        side = {name: getattr(response, name) for name in ("logprobs", "is_sentinel", "is_greedy", "is_greedy_known")}
        sides.append(side | {
            "best": _most_likely(response, classes, own, has_order),
            "top_ids": np.column_stack([others, np.where(np.isnan(response.logprobs), -1, own)]),
            "top_logprobs": np.column_stack([response.top_logprobs, response.logprobs]),
        })  # fmt: skip
    return sides[0], sides[1]


def _numbers_by_text(both: tuple[Response, Response]) -> list[IntArray]:
    """A number for the text of each listed class of both responses; `_OWN` for a class that may be the token itself."""
    numbers: dict[str, int] = {}
    tops = [_numbers_of_texts(response.top_tokens, numbers) for response in both]
    texts = [_numbers_of_texts(response.tokens, numbers) for response in both]
    for response, top in zip(both, tops, strict=True):
        for text in texts:  # a class of the token's text is the token, or cannot be distinguished from it
            top[(top == text[:, None]) & (top >= 0)] = _OWN
        top[response.top_logprobs == response.logprobs[:, None]] = _OWN  # it may be the token by another text
    return tops


def _numbers_of_texts(texts: Array, numbers: dict[str, int]) -> IntArray:
    """A number for each text, the same for equal texts; -1 for a text that names no class."""
    pairs = zip(texts.reshape(-1), _are_whole(texts), strict=True)
    flat = [numbers.setdefault(text, len(numbers)) if is_whole else -1 for text, is_whole in pairs]
    return np.array(flat, np.int64).reshape(texts.shape)


def _without_twice(classes: IntArray) -> IntArray:
    """Classes of lists, with -1 in place of each class that occurs twice in its list."""
    order = np.argsort(classes, axis=1, kind="stable")
    ordered = np.take_along_axis(classes, order, 1)
    again = ordered[:, 1:] == ordered[:, :-1]
    is_twice = np.zeros(classes.shape, np.bool_)
    is_twice[:, 1:] |= again
    is_twice[:, :-1] |= again
    ordered[is_twice] = -1
    result = np.empty_like(classes)
    np.put_along_axis(result, order, ordered, 1)
    return result


def _most_likely(response: Response, classes: IntArray, own: IntArray, has_order: bool) -> IntArray:
    """The most likely class of each list: the first of equally likely ones, or none if numbers have no order."""
    best = np.full(len(classes), -1)
    if classes.shape[1]:
        logs = np.where(np.isnan(response.top_logprobs), -np.inf, response.top_logprobs)
        is_best = (logs == logs.max(-1)[:, None]) & ~np.isnan(response.top_logprobs)
        lowest = np.where(is_best, classes, _OWN + 1).min(-1)
        is_told = is_best.any(-1) & (has_order | (is_best.sum(-1) == 1))
        best = np.where(is_told, lowest, -1)
    return np.where(response.is_greedy & response.is_greedy_known, own, best)


def _columns(base: Columns, other: Columns, rounding: float) -> Columns:
    """Results for each token: nan where one of the models has no number."""
    nll, base_nll = -other["logprobs"], -base["logprobs"]
    compared = ~(np.isnan(nll) | np.isnan(base_nll))
    tops = [
        array
        for side in (base, other)
        for array in (np.where(np.isnan(side["top_logprobs"]), -1, side["top_ids"]), side["top_logprobs"])
    ]
    bound = topk_divergence_bound(*tops, rounding=rounding)
    any_greedy = base["is_greedy"] | other["is_greedy"]
    known = compared & base["is_greedy_known"] & other["is_greedy_known"]
    known &= any_greedy | ((base["best"] >= 0) & (other["best"] >= 0))
    same = np.where(any_greedy, base["is_greedy"] & other["is_greedy"], base["best"] == other["best"])
    base_margin, margin = _margins(base, other)
    numbers = {
        "base_margin": base_margin,
        "margin": margin,
        "rounding": np.full(nll.shape, 2 * rounding),
        "nll": nll,
        "base_nll": base_nll,
        "kl_bound": bound.kl,
        "base_mass": bound.base_mass,
        "mass": bound.mass,
        "delta_p": np.exp(-nll) - np.exp(-base_nll),
    }
    return {name: np.where(compared, column, np.nan) for name, column in numbers.items()} | {
        "is_same_top": same & known,
        "is_top_known": known,
        "kept": compared,
        "is_bounded": compared & (bound.n_common > 1),
        "is_identical": compared & _are_identical(base, other),
        "is_sentinel": base["is_sentinel"] | other["is_sentinel"],
    }


def _are_identical(base: Columns, other: Columns) -> BoolArray:
    """Mask of the tokens whose own log-probability and all listed ones are the same in both."""
    widths = [side["top_logprobs"].shape[1] for side in (base, other)]
    tops = [np.full((len(side["logprobs"]), max(widths)), np.nan) for side in (base, other)]
    for one, side, width in zip(tops, (base, other), widths, strict=True):
        one[:, :width] = side["top_logprobs"]
        one.sort(axis=1)  # nan last
    same = (tops[0] == tops[1]) | (np.isnan(tops[0]) & np.isnan(tops[1]))
    are_same: BoolArray = same.all(axis=1) & (base["logprobs"] == other["logprobs"])
    return are_same


def _margins(base: Columns, other: Columns) -> tuple[Float64Array, Float64Array]:
    """The log-probability of the base's most likely class minus its second's, under both models; nan if not listed.

    Where the token itself may have been added to a list, readers of responses have taken it out.
    """
    logs, own = base["top_logprobs"][:, :-1], base["top_logprobs"][:, -1:]
    margins = np.full((2, len(own)), np.nan)
    if logs.shape[1] < 2:
        return margins[0], margins[1]
    logs = np.where(np.isnan(logs), -np.inf, logs)
    order = np.argsort(-logs, axis=1, kind="stable")[:, :2]
    tops = np.take_along_axis(logs, order, 1)
    ids = np.where((base["top_ids"][:, :-1] < 0) & (logs == own), base["top_ids"][:, -1:], base["top_ids"][:, :-1])
    wanted = np.take_along_axis(ids, order, 1)[:, None]  # (n, 1, 2)
    is_it = (other["top_ids"][:, :, None] == wanted) & (wanted >= 0) & (wanted[..., :1] != wanted[..., 1:])
    is_it &= ~np.isnan(other["top_logprobs"])[:, :, None]
    others = np.where(is_it, other["top_logprobs"][:, :, None], -np.inf).max(axis=1)
    is_known = np.True_
    for margin, pair in zip(margins, (tops, others), strict=True):
        is_known = is_known & np.isfinite(pair).all(axis=1)
        margin[is_known] = pair[is_known, 0] - pair[is_known, 1]
    return margins[0], margins[1]


def _of_parity(columns: Columns) -> Columns:
    """The columns from which parity is determined: whether a flip is known, and the divergence as a bound."""
    same = columns["is_same_top"] | ~columns["is_top_known"]
    return {name: columns[name] for name in PARITY_COLUMNS if name in columns} | {
        "kl": columns["kl_bound"], "is_same_top": same, "segment_ids": columns["sequence"],
    }  # fmt: skip


TOKEN_COLUMNS = (
    "kept", "base_nll", "nll", "kl_bound", "delta_p", "is_same_top", "is_top_known", "base_mass", "mass",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ResponseComparison(PairedLosses):
    """Result of `compare_files` for responses: the metrics of a model against its base that responses allow.

    Errors are clustered by sequence (by response) if there are at least two. They are nan for fewer than two tokens, or
    if the value is infinite or nan. Only tokens that have a log-probability in both files count; without any, all
    values are nan.

    Attributes
    ----------
    part : {"prompt", "generated", "all"}
        The part of the responses that was compared.
    base_rounding, rounding : str
        How the log-probabilities of the base and of the model were rounded, such as "4 decimals", judging by their
        values.
    n_without_number : int
        Number of tokens without a log-probability in one of the files, such as the first token of each prompt.
    n_sentinels : int
        Number of other tokens that are left out, since one of the files has a sentinel there, such as -9999.0.
    n_skipped : int
        Number of requests that failed in one of the files, and were left out.
    mean_kl_bound : Estimate
        Mean lower bound, in nats, on the KL divergence of the model's distribution from the base's: see
        `topk_divergence_bound`. The token itself counts as a class that both list.
    kl_bound_quantiles : dict
        As `delta_p_quantiles`, without 0.75 and 0.25.
    n_bounded : int
        Number of tokens for which both list a class besides the token itself.
    mean_base_mass, mean_mass : float
        Mean probability of the classes that both list, under the base and under the model: the part of the
        distributions from which the bound is computed.
    n_top_known : int
        Number of tokens at which it is known whether both models have the same most likely class.
    kl_bound, base_mass, mass : array of float64
        For each token, the lower bound, and the probability of the classes that both list, under each of the models.
    is_top_known : array of bool
        Whether it is known that both models have the same most likely class or not.
    sequences : dict of 1-D arrays
        Columns of a table that has a row for each sequence with any compared token: "sequence" (its number in the file
        of the base, from 0), "count" and means over its tokens: "loss", "base_loss", "loss_difference", "delta_p",
        "kl_bound" and "same_top" (nan if it is unknown for all tokens), the first positions "first_difference" of
        log-probabilities and "first_flip", as in `Comparison`, "line" and "base_line", where its response is in the
        files, and "custom_id". All tokens are in the order of the file of the base.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import compare_files
    >>> base = '{"choices": [{"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.25}]}}]}'
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [pathlib.Path(directory) / name for name in ("base.jsonl", "other.jsonl")]
    ...     _ = [path.write_text(text) for path, text in zip(paths, (base, base.replace("0.25", "0.5")))]
    ...     compare_files(paths[0], {"q4": paths[1]})["q4"]
    ResponseComparison(mean_kl_bound=0.05671, count=1, n_sequences=1, perplexity=1.64872, base_perplexity=1.28403)
    """

    _divergence = "kl_bound"
    _quantity = "lower bound on the KL divergence"
    _unit = "responses"

    part: str
    base_rounding: str
    rounding: str
    n_without_number: int
    n_sentinels: int
    n_skipped: int
    mean_kl_bound: Estimate
    kl_bound_quantiles: dict[float, Estimate]
    n_bounded: int
    mean_base_mass: float
    mean_mass: float
    n_top_known: int
    kl_bound: Float64Array
    base_mass: Float64Array
    mass: Float64Array
    is_top_known: BoolArray
    _rounding: Float64Array  # of margins

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return responses_shown(comparisons)

    def _parity_columns(self) -> Columns:
        own = {"rounding": self._rounding, "sequence": self._segment_ids}
        return _of_parity(vars(self) | own)

    def _signature_fields(self) -> dict[str, Any]:
        """Fields of its signature."""
        return super()._signature_fields() | {"kind": "responses", "part": self.part}

    def _main(self) -> dict[str, str]:
        bound = formatted(self.mean_kl_bound, self.mean_kl_bound.stderr, 4)
        main = {"mean_kl_bound": bound, "count": str(self.count), "n_sequences": str(self.n_sequences)}
        return main | {name: formatted(getattr(self, name)) for name in ("perplexity", "base_perplexity")}


ResponseComparison.__module__ = "tokenloss.results"


def response_comparison_of(
    columns: Columns, origins: dict[int, tuple[int, int, str | None, Any]], **others: Any
) -> ResponseComparison:
    """Statistics of all tokens, and the table of their sequences, with the origin of each."""
    mask, known, ids = columns["kept"], columns["is_top_known"], columns["sequence"]
    nll, base_nll, bound, delta_p = (columns[name][mask] for name in ("nll", "base_nll", "kl_bound", "delta_p"))
    metrics, means = paired_metrics(nll, base_nll, delta_p, ids[mask], "responses")
    mean_bound, same_top = Mean(bound, ids[mask]), Mean(columns["is_same_top"][known], ids[known])
    base_mass, mass = (Mean(columns[name][mask], None) for name in ("base_mass", "mass"))
    sequences = sequence_table(means | {"kl_bound": mean_bound})
    numbers = sequences["sequence"]
    sequences["same_top"] = np.full(len(numbers), np.nan)
    sequences["same_top"][np.searchsorted(numbers, same_top.sequences.sequence)] = same_top.sequences.loss
    sequences |= first_places(_of_parity(columns), numbers)
    for i, (name, dtype) in enumerate((("base_line", np.int64), ("line", np.int64), ("custom_id", object))):
        sequences[name] = np.array([origins[number][i] for number in numbers.tolist()], dtype)
    metrics |= parity_of(_of_parity(columns))
    metrics |= {name: columns[name] for name in (*TOKEN_COLUMNS, "base_margin", "margin", "is_identical")}
    return ResponseComparison(
        n_without_number=int(np.count_nonzero(~mask & ~columns["is_sentinel"])),
        n_sentinels=int(np.count_nonzero(~mask & columns["is_sentinel"])),
        mean_kl_bound=mean_bound.measure("mean", "responses").estimate(),
        kl_bound_quantiles=quantiles(np.sort(bound), KL_QUANTILES),
        n_bounded=int(np.count_nonzero(columns["is_bounded"])),
        mean_base_mass=base_mass.mean,
        mean_mass=mass.mean,
        same_top=same_top.measure("share", "responses").estimate(),
        n_top_known=int(np.count_nonzero(known)),
        sequences=sequences,
        _segment_ids=ids,
        _rounding=columns["rounding"],
        **others,
        **metrics,
    )
