"""What the config.json beside a model's weights says about its logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.errors import named, refuse
from tokenloss.formats.json_text import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

_NAME = "config.json"
_MAX_BYTES = 16 << 20
_MAX_NUMBER = 1e30
_TEXT_CONFIGS = ("text_config", "decoder", "language_config", "llm_config", "thinker_config")  # of parts of a model
_T5 = "t5 umt5 longt5 pop2piano switch_transformers udop"
# Each key with its effect, and the types of models for which the effect is known: first the types whose config must
# have the key, since its default changes logits, then the others. The value caps, multiplies or divides the logits or
# the hidden states; "nothing" is of keys that leave logits alone, though `_may_change_logits` suspects them.
# dim_model_base is relative to hidden_size.
_KEYS = (
    (
        "final_logit_softcapping", "caps",
        "gemma2 gemma3n gemma3n_text vaultgemma nanochat beam mistral_large4 t5gemma diffusion_gemma "
        "inkling2 inkling2_text inkling2_loop inkling2_loop_text muse_glimmer muse_spark",
        "gemma3_text gemma4 gemma4_text gemma4_unified gemma4_unified_text paligemma t5gemma2",
    ),
    ("logits_soft_cap", "caps", "recurrent_gemma", ""),
    ("output_logit_soft_cap", "caps", "xlstm", ""),
    ("logit_scale", "multiplies", "cohere cohere2 cohere2_moe", "cohere_compass cohere_compass_text"),
    ("lm_head_multiplier", "multiplies", "", "falcon_h1"),
    ("output_multiplier", "multiplies", "muse_glimmer muse_spark", ""),
    ("logits_scaling", "multiplies", "", "hyperclovax hyperclovax_vision_v2"),
    (
        "logits_scaling", "divides", "granite_docling",
        "granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared granite4_vision",
    ),
    ("logits_mup_width_multiplier", "divides hidden states", "inkling_mm_model inkling_text", ""),
    ("dim_model_base", "multiplies hidden states", "minicpm minicpm3", ""),
    ("mup_denominator", "nothing", "", "minicpm minicpm3"),
    ("mup_enabled", "nothing", "", "afmoe"),
    ("scale_decoder_outputs", "nothing", "", _T5),  # `_effects` takes d_model for it
)  # fmt: skip
_EFFECTS = {(key, kind): effect for key, effect, *kinds in _KEYS for kind in " ".join(kinds).split()}
_NEEDED = {(key, kind) for key, _, kinds, _ in _KEYS for kind in kinds.split()}
_NAMES = {key for key, *_ in _KEYS}
# model types whose head is the embedding where their config does not say
_TIED = (
    "bart blenderbot blenderbot-small bloom cohere cohere2 falcon gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text "
    "gpt2 gpt_bigcode gpt_neo led longt5 m2m_100 mamba marian mbart mpt mvp opt paligemma pegasus plbart "
    "recurrent_gemma smollm3 starcoder2 switch_transformers t5 t5gemma umt5 vaultgemma xglm"
)
# what keys are about that have nothing to do with logits, in the words of their names
_OTHER_PARTS = (
    "attention", "attn", "audio", "expert", "ffn", "fp32", "gate", "image", "init", "input", "lm_head_bias", "loss",
    "mlp", "projector", "qk", "residual", "route", "ssm", "vision",
)  # fmt: skip
_NORMALISED = ("baichuan",)  # model types that normalise the rows of their head
_WITH_HEAD = re.compile("CausalLM|ConditionalGeneration|LMHead|MTModel|ImageTextToText")  # names of models with a head


def _may_change_logits(key: str) -> bool:
    """Whether the name of a key suggests a scale or a cap of logits, so that it is refused where its effect is unknown.

    This is a judgement: a new name of such a key should be suspected, and the names of other keys should not be. A name
    is suspected if it speaks of logits, or of a scale and an output, unless it speaks of another part of the model.
    """

    def has(*words: str) -> bool:
        return any(word in key for word in words)

    if key.startswith(("embed", "key_", "num_")) or has(*_OTHER_PARTS):
        return False
    of_logits = has("logit", "softcap", "soft_cap", "mup", "multiplier", "lm_head", "unembed")
    return of_logits or (has("scal", "alpha", "temper") and has("output", "head", "width", "final"))


class Transform(NamedTuple):
    """How logits are made of the products of hidden states and the head."""

    logit_scale: float
    softcap: float | None
    note: str  # where it is from, for people
    is_of_hidden: bool  # whether a factor is of the hidden states, before a bias is added


class ModelConfig:
    """What a config.json, if there is one, says of the part of a model that reads text."""

    def __init__(self, path: str, parts: list[dict[str, Any]]) -> None:
        self._parts = parts
        self._ties = {value for value in self._values("tie_word_embeddings") if isinstance(value, bool)}
        self.path: str = path
        self.exists: bool = bool(parts)
        self.kind: str = str(next(iter(self._values("model_type")), ""))
        self.has_bias: bool = True in self._values("lm_head_bias")
        self.is_normalised: bool = self.kind in _NORMALISED
        # T5's is the head that is stored, if one is, whatever the config says
        self.says_tied: bool = self._ties == {True} and self.kind not in _T5.split()

    def why_not_tied(self) -> str | None:
        """Why the embedding is not taken for the head; None if it is the head."""
        if not self.exists:
            return f"no {_NAME} says that this is the head"
        said = (names if isinstance(names, list) else [names] for names in self._values("architectures"))
        architectures = [str(name) for names in said for name in names]
        if architectures and not any(map(_WITH_HEAD.search, architectures)):
            return f"{_NAME} has architectures {architectures[0]}"
        if self._ties == {True} or (not self._ties and self.kind in _TIED.split()):
            return None
        return f"{_NAME} has tie_word_embeddings {' and '.join(map(json.dumps, sorted(self._ties))) or 'nowhere'}"

    def check_classes(self, path: str, name: str, n: int) -> None:
        """Refuse a head of another number of classes than the vocabulary, as transformers does."""
        sizes = [size for key in ("vocab_size", "decoder_vocab_size") for size in self._values(key)]
        if sizes and n not in sizes:
            got = f"{name} has {n} classes, and {_NAME} vocab_size {sizes[-1]}"
            refuse(path, got, "have as many, or come as FILE:NAME")

    def transform(self, logit_scale: float | None, softcap: float | None) -> Transform:
        """The transform of the logits; a scale or a cap that is given, 0 for no cap, replaces that of the config."""
        scale, cap, is_of_hidden = 1.0, 0.0, False
        for value, effect in self._effects(logit_scale is not None, softcap is not None):
            if effect == "caps":
                cap = value
            else:
                scale = scale / value if effect.startswith("divides") else scale * value
                is_of_hidden |= effect.endswith("hidden states") and logit_scale is None
        notes = []
        for name, given, own, neutral in ("scale", logit_scale, scale, 1.0), ("softcap", softcap, cap, 0.0):
            if given is not None:
                notes.append(f"{name} {given:.6g} (given" + (f"; {_NAME}: {own:.6g})" if own != neutral else ")"))
            elif own != neutral:
                notes.append(f"{name} {own:.6g} ({_NAME})")
        note = ", ".join(notes) or ("neither scaled nor capped" + ("" if self.exists else f"; no {_NAME}"))
        cap = cap if softcap is None else softcap
        return Transform(scale if logit_scale is None else logit_scale, cap or None, note, is_of_hidden)

    def _effects(self, scale_is_given: bool, cap_is_given: bool) -> Iterator[tuple[float, str]]:
        """Each value that changes logits, and its effect; one that is not known is refused unless it is replaced."""
        if self.kind in _T5.split() and self._scales_outputs():
            yield self._number("d_model") ** -0.5, "multiplies hidden states"
        suspects = {key for part in self._parts for key in part if _may_change_logits(key)}
        for key in sorted(suspects | _NAMES):
            is_cap, effect = "cap" in key, _EFFECTS.get((key, self.kind))
            values = [value for value in self._values(key) if value is not False]
            fits = cap_is_given if is_cap else scale_is_given
            needing = [kind for kind in self._values("model_type") if (key, str(kind)) in _NEEDED]
            if not values and needing and not fits:
                self._refuse(key, f"is not there, which models of type {needing[0]!r} have")
            neutral = 0 if is_cap else 1
            if effect == "nothing" or all(value is not True and value == neutral for value in values):
                continue
            if effect and len({*map(str, values)}) == 1 and _is_positive(values[0]):
                share = self._number("hidden_size") if key == "dim_model_base" else 1
                yield values[0] / share, effect
            elif not fits:
                got = f"is {values[-1]!r}, whose effect on logits of models of type {self.kind!r} is not known"
                self._refuse(key, got)

    def _scales_outputs(self) -> bool:
        """Whether a model like T5 scales its hidden states; older configs only say so by the tie."""
        said = [*self._values("scale_decoder_outputs"), *self._values("tie_word_embeddings"), True]
        return self.kind == "udop" or said[0] is not False

    def _values(self, key: str) -> list[Any]:
        """The values that the parts have under a key."""
        return [part[key] for part in self._parts if part.get(key) is not None]

    def _number(self, key: str) -> float:
        """A number that another value is relative to."""
        for value in self._values(key):
            if _is_positive(value):
                return float(value)
        return self._refuse(key, "is not there, or no positive number")

    def _refuse(self, key: str, got: str) -> NoReturn:
        """Refuse a key, and name the option that replaces it."""
        fits = f"{named('softcap', 'X')}, 0 for none" if "cap" in key else f"{named('logit_scale', 'X')}, 1 for none"
        refuse(self.path, f"{key} {got}", f"come with {fits}")


def read_config(path: str) -> ModelConfig:
    """The config of the model that a file of weights is part of."""
    file_path = str(Path(path).with_name(_NAME))
    if not Path(file_path).exists():
        return ModelConfig(file_path, [])
    return ModelConfig(file_path, [*_parts(read_object(file_path, _MAX_BYTES))])


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config, and those of its parts that are about text."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key in _TEXT_CONFIGS or (key.endswith("_config") and "vocab_size" in value)):
            yield from _parts(value)


def _is_positive(value: Any) -> bool:
    """Whether a value of JSON is a positive number that floats can hold."""
    return type(value) in (int, float) and 0 < value < _MAX_NUMBER
