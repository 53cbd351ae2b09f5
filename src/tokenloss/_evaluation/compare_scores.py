"""The comparison of files of scores or hidden states: checks arguments for `compare.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss._comparison.columns import check_definitions
from tokenloss._comparison.comparisons import NOT_OF_DRAFTS
from tokenloss._comparison.draft_columns import OF_DRAFTS
from tokenloss._comparison.drafts import check_cost_ratio, check_temperature
from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, as_paths, check_choice, check_shift, further_divergences, refuse_given
from tokenloss._core.errors import raise_error
from tokenloss._core.text import title
from tokenloss._core.threads import check_workers
from tokenloss._core.validation import check_integer, head_transform
from tokenloss._evaluation.compare import compare_sides
from tokenloss._evaluation.options import Inputs, Options, Settings, by_identity, checked_sizes, resolved
from tokenloss._evaluation.sink import checked_sinks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Kind
    from tokenloss._evaluation.sink import Sink


def compare_scores(
    base: list[str], others: dict[str, list[str]], *, targets: Any, segment_ids: Any, base_array: str | None,
    array: str | None, targets_array: str | None, base_kind: Kind | None, kind: Kind | None, base_lm_head: Any,
    lm_head: Any, base_hidden: str | None, hidden: str | None, logit_scale: float | None, softcap: float | None,
    classes: int | None, definitions: Literal["exact", "llama.cpp"], divergences: Sequence[str], draft: bool,
    temperature: float | None, cost_ratio: float | None, ignore_index: int | None, shift: bool | None,
    sizes: Mapping[str, Any] | None, noise: Any, sinks: Sequence[Sink], state: Any, scheduler: str | None,
    progress: bool, workers: int | None,
) -> Comparisons[Any]:  # fmt: skip
    """Compare candidates with their base, given files of scores or hidden states; options as of `compare_files`.

    If there is `noise`, it is the last of the candidates, and read as the base is.
    """
    check_choice("base_kind", base_kind, KINDS)
    check_choice("kind", kind, KINDS)
    wanted = further_divergences(divergences, check_definitions(definitions))
    check_shift(shift)
    if classes is not None:
        classes = check_integer("classes", classes, "a positive integer or None", least=1)
    if draft not in (True, False):
        raise_error("option", name="draft", got=draft, fits="True or False")
    if draft:
        given = {"classes": classes, "definitions": None if definitions == "exact" else definitions, "noise": noise}
        refuse_given(given | {"divergences": wanted}, "left out of a comparison of drafts")
        temperature, wanted = check_temperature(1.0 if temperature is None else temperature), OF_DRAFTS
        shift = bool(shift)  # None would look whether the targets, which are not needed, should be shifted
    else:
        refuse_given({"temperature": temperature, "cost_ratio": cost_ratio}, "left out without draft")
    names = [*others] if noise is None else [*others][:-1]
    heads = _heads((base_array, base_kind, base_lm_head), (array, kind, lm_head), len(names))
    scale, cap = head_transform(logit_scale, softcap)
    of_hidden = {"hidden": hidden, "softcap": cap, "logit_scale": scale}
    refuse_given({} if any(heads) else of_hidden, "left out without lm_head")
    _refuse_scores(heads, [title(base), *(title(others[name]) for name in names)], scale, cap)
    refuse_given({} if heads[0] else {"base_hidden": base_hidden}, "left out where the base has no lm_head")
    shared = Options(ignore_index=ignore_index, shift=shift, logit_scale=scale, softcap=cap)
    as_base = shared._replace(array=base_array, kind=base_kind, lm_head=heads[0], hidden=base_hidden or hidden)
    candidates = [shared._replace(array=array, kind=kind, lm_head=head, hidden=hidden) for head in heads[1:]]
    if noise is not None:
        candidates.append(as_base)
        heads.append(heads[0])
    options = as_base._replace(
        targets_array=targets_array,
        definitions=definitions,
        divergences=wanted,
        classes=classes,
        temperature=temperature,
        others=tuple(candidates),
    )
    of_sizes = checked_sizes(sizes or {}, names)
    abouts = [
        {"base": title(base), "name": name, "file": title(paths), "size": of_sizes.get(name)}
        for name, paths in others.items()
    ]
    state = None if state is None else as_path("state", state)
    outputs = checked_sinks(sinks, "compare_files", state, scheduler)
    for output in outputs if draft else ():
        if not output._takes_drafts:
            raise_error("not for", name=output._name, fits=NOT_OF_DRAFTS)
    of_rows = {"targets": targets, "segment_ids": segment_ids}
    ids, segments = (resolved(as_paths(name, value)) for name, value in of_rows.items())
    sides = [
        Inputs(resolved(paths, are_scores=True), [], [], lm_head=head)
        for paths, head in zip((base, *others.values()), heads, strict=True)
    ]
    sides[0] = sides[0]._replace(targets=ids, segment_ids=segments)
    settings = Settings(
        state=state, scheduler=scheduler, workers=check_workers(workers), progress=progress,
        cost_ratio=check_cost_ratio(cost_ratio),
    )  # fmt: skip
    return compare_sides(sides, by_identity([], sizes), abouts, options, settings, outputs)


def _refuse_scores(heads: Sequence[str | None], files: Sequence[str], scale: float | None, cap: float | None) -> None:
    """Refuse a transform of hidden states where there are scores, too: only one of the models would be heated."""
    values = ("logit_scale", scale, 1.0), ("softcap", cap, 0.0)
    given = [name for name, value, neutral in values if value is not None and value != neutral]
    for head, file in zip(heads, files, strict=True):
        if head is None and given:
            got = f"is read as scores, which {given[0]} (--{given[0].replace('_', '-')}) leaves as they are"
            fits = "hold hidden states, as the others do; config.json beside a head may scale and cap its logits alone"
            raise_error("content", path=file, got=got, fits=fits)


def _heads(of_base: tuple[Any, Any, Any], of_others: tuple[Any, Any, Any], n: int) -> list[str | None]:
    """The projection of the base and of each candidate; None for those that have scores."""
    (base_array, base_kind, base_head), (array, kind, value) = of_base, of_others
    heads: list[str | None] = [] if value is None else [*as_paths("lm_head", value)]
    if heads:
        refuse_given({"array": array, "kind": kind}, "left out where there is lm_head")
    if value is not None and len(heads) not in (1, n):
        fits = f"one, or one for each of {n} candidates"
        raise_error("option", name="lm_head", got=f"{len(heads)} paths", fits=fits)
    if base_head is not None:
        refuse_given({"base_array": base_array, "base_kind": base_kind}, "left out where there is base_lm_head")
        base_head = as_path("base_lm_head", base_head)
    elif len(heads) == 1 and base_array is None and base_kind is None:
        base_head = heads[0]
    return [base_head, *(heads * n if len(heads) == 1 else heads or [None] * n)]
