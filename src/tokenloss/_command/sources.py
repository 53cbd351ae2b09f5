"""Options of the command that describe the content of files: they become the options of openers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tokenloss._core.arguments import is_given
from tokenloss._core.errors import named, raise_error
from tokenloss._core.text import count_of, title
from tokenloss.formats import npy
from tokenloss.formats.content import CONTENTS, OF_SCORES, Content, content_of
from tokenloss.formats.logprobs import open_logprobs
from tokenloss.formats.readers import format_of
from tokenloss.formats.records import are_records
from tokenloss.formats.scores import open_hidden_states
from tokenloss.formats.sources import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from tokenloss.formats.sources import Source

_OF_TOKENS = ("targets", "segment_ids", "targets_array", "ignore_index", "window", "stride", "tokenizer")
_OF_HIDDEN = (*_OF_TOKENS, "hidden", "logit_scale", "softcap")
_FOR_BASE = {"array": "base_array", "kind": "base_kind", "hidden": "base_hidden", "lm_head": "base_lm_head"}
# what openers take, by the content that the option is for, in the words of messages
_FOR = {
    **dict.fromkeys((*OF_SCORES, "base_array", "base_kind"), "scores"),
    **dict.fromkeys(("hidden", "base_hidden", "logit_scale", "softcap", "lm_head", "base_lm_head"), "hidden states"),
    **dict.fromkeys(("part", "skip_failed"), "responses"),
    "logprobs": "log-probabilities",
    "mask": "log-probabilities in files with names",
    "run": "folders of samples",
}
DEFAULTS = {  # of options whose default is not None
    "ignore_index": -100, "skip_failed": False, "logprobs": False, "draft": False, "calibration": False,
    "definitions": "exact", "divergences": ("kl",),
}  # fmt: skip


class Flags:
    """The options that were given, and those that some source used."""

    def __init__(self, args: argparse.Namespace) -> None:
        values = {name: getattr(args, name) for name in _FOR if hasattr(args, name) and name != "shift"}
        self.values = {name: one for name, one in values.items() if is_given(one, DEFAULTS.get(name))}
        self._taken: set[str] = set()

    def source(
        self, paths: Sequence[str], role: str = "only", lm_head: str | None = None, has_tokens: bool = True
    ) -> Source:
        """Open the files of a model; `has_tokens` if the options about targets and sequences are for it."""
        names = {name: _FOR_BASE.get(name, name) if role == "base" else name for name in _FOR}
        if names["hidden"] not in self.values:
            names["hidden"] = "hidden"  # shared by all models
        content = self._content(paths, names, lm_head)
        options = [name for name in content.options if has_tokens or name not in _OF_TOKENS]
        if content.open is open_logprobs:
            if names["array"] not in self.values:
                names["array"] = "array"  # shared by all models
            if not are_records(paths[0]) and format_of(paths[0]) is npy.FORMAT:  # whose array has no name
                options = [name for name in options if name not in ("array", "mask")]
        given = {name: self.values[names[name]] for name in options if names[name] in self.values}
        self._taken |= {names[name] for name in given}
        if "hidden" in given:
            given["array"] = given.pop("hidden")
        return content.open(paths if len(paths) > 1 else paths[0], **given)

    def _content(self, paths: Sequence[str], names: Mapping[str, str], lm_head: str | None) -> Content:
        """The content of a model's files, by the options that name it, or else by the files themselves."""
        are_json = any(map(are_records, paths))
        if lm_head is not None and not are_json:
            self._taken.add(names["lm_head"] if names["lm_head"] in self.values else "lm_head")
            opener = functools.partial(open_hidden_states, lm_head=lm_head)
            return Content("hidden states", lambda path: True, opener, _OF_HIDDEN)
        if "logprobs" in self.values and not are_json:
            content = next(one for one in CONTENTS if one.open is open_logprobs)
        else:
            content = content_of(paths, self.values.get(names["kind"]))
        self._taken |= {"logprobs"} if content.open is open_logprobs else set()
        return content

    def refuse_rest(self, sources: Mapping[str, Source]) -> None:
        """Refuse the options that no source took."""
        names: dict[str, dict[str, None]] = {}  # by what they hold, each once
        for one in sources.values():
            names.setdefault(one.given()["source"], {})[one.name] = None
        held = (f"{title([*own])} {'have' if len(own) > 1 else 'has'} {content}" for content, own in names.items())
        for name in (name for name in self.values if name not in self._taken):
            raise_error("not for", name=name, fits=f"is for {_FOR[name]}; {' and '.join(held)}")


def heads_of(flags: Flags, n: int) -> list[str | None]:
    """The head of the base and of each candidate; None for models with scores."""
    given = flags.values.get("lm_head") or []
    heads = [given] if isinstance(given, str) else [*given]
    if heads and len(heads) not in (1, n):
        fits = f"one, or one for each of {n} candidates"
        raise_error("option", name="lm_head", got=f"{len(heads)} paths", fits=fits)
    base_head = flags.values.get("base_lm_head")
    if base_head is None and len(heads) == 1 and not {"base_array", "base_kind"} & {*flags.values}:
        base_head = heads[0]
    return [base_head, *(heads * n if len(heads) == 1 else heads or [None] * n)]


def sources_of_comparison(flags: Flags, base: str, others: Mapping[str, str]) -> tuple[Source, dict[str, Source]]:
    """The sources of a base and of its candidates; options about tokens are for the base, if that has scores."""
    own, *heads = heads_of(flags, len(others))
    try:
        source = flags.source([base], "base", own)
        has_rows = source.level == "rows"
        models = {
            name: flags.source([path], "other", head, has_tokens=not has_rows)
            for (name, path), head in zip(others.items(), heads, strict=True)
        }
    except ValueError as error:
        is_shared = own is not None and "base_lm_head" not in flags.values
        if not is_shared:
            raise
        hint = "{} gives the base a head of its own, and {} the kind of its scores"
        raise ValueError(f"{error}; {hint.format(named('base_lm_head'), named('base_kind'))}") from error
    flags.refuse_rest({"base": source, **models})
    return source, models


def sources_of_texts(args: argparse.Namespace, base: str, other: str) -> tuple[Source, Source]:
    """The sources of two models with different tokenizers: if an option is given twice, the first is for the base."""
    flags = Flags(args)
    for name in ("targets", "segment_ids"):
        given = flags.values.get(name, ())
        if len(given) not in (0, 2):
            raise_error("option", name=name, got=count_of(len(given), "path"), fits="two: for BASE, and for OTHER")
    opened = []
    for number, (letter, path) in enumerate((("a", base), ("b", other))):
        own = Flags(args)
        own.values |= {name: flags.values[name][number] for name in ("targets", "segment_ids") if name in flags.values}
        own.values["tokenizer"] = getattr(args, f"tokenizer_{letter}")
        opened.append(own.source([path]))
        require(opened[-1], "rows", "text")
        own.refuse_rest({"": opened[-1]})
    return opened[0], opened[1]
