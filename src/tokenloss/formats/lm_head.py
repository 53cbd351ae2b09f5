"""The projection of hidden states onto the vocabulary, from the files of a model and its config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import named, raise_error, refuse
from tokenloss.formats import safetensors
from tokenloss.formats.base import is_float, open_regular
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.readers import FORMATS, either
from tokenloss.formats.records import read_object
from tokenloss.formats.scores_file import LmHead, reject_array_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array

_INDEX = ".safetensors.index.json"  # of the shards of a model
_OPENERS = {suffix: one.open for one in FORMATS if one.open and one.may_hold_head for suffix in one.suffixes}
HEAD_FILES = either([
    *(one.words for one in FORMATS if one.may_hold_head), f"an index (*{_INDEX})", "a directory of a model",
])  # fmt: skip
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_ADAPTER = "adapter_config.json"

# Names of weights in the files of models: of the head, of heads for other tasks, of the final norm, of layers between
# that and the head, of separate biases, and of the embedding, whose weight may be that of the head.
_HEADS = (
    "lm_head.weight", "output.weight", "embed_out.weight", "head.weight", "language_model.lm_head.weight",
    "transformer.output_layer.weight", "lm_head",
)  # fmt: skip
_OTHER_HEAD = re.compile(r"(^|\.)(score|classifier|classification_head|v_head|value_head|reward_head|qa_outputs)\.")
_NORMS = (
    "model.norm.weight", "model.language_model.norm.weight", "language_model.model.norm.weight", "norm.weight",
    "transformer.ln_f.weight", "ln_f.weight", "gpt_neox.final_layer_norm.weight", "model.final_layernorm.weight",
    "model.decoder.final_layer_norm.weight", "decoder.final_layer_norm.weight", "model.decoder.layer_norm.weight",
    "transformer.norm_f.weight", "backbone.norm_f.weight",
)  # fmt: skip
_BEFORE_HEAD = ("projection_head.", "unembedding_projection.")
_BIASES = ("final_logits_bias", "lm_head_bias")
_EMBEDDINGS = (
    "model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "tok_embeddings.weight",
    "model.decoder.embed_tokens.weight", "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight", "transformer.word_embeddings.weight", "gpt_neox.embed_in.weight",
    "backbone.embedding.weight", "backbone.embeddings.weight", "shared.weight", "model.shared.weight",
    "decoder.embed_tokens.weight", "word_embeddings.weight", "embed_tokens.weight",
    "model.text_model.embed_tokens.weight",
)  # fmt: skip
_COMPARED_ROWS = 64  # of two weights that a model ties


class _HeadFiles(NamedTuple):
    """The file of a head, or an index of several; the file of each array by name; and the config beside it."""

    path: str
    files: Mapping[str, Any]
    name: str | None  # of the weight, if it was given
    config: ModelConfig

    def locate(self, name: str) -> ArrayLocation:
        """Location of an array."""
        file = self.files.get(name)
        if file is None:
            refuse(self.path, f"has no {name}", "have it, to be the head")
        # no name in an index is used as a path
        if self.path.endswith(_INDEX):
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                refuse(self.path, f"names {file!r} for {name}", "name a .safetensors file next to it")
            file = str(Path(self.path).with_name(file))
        location = _OPENERS[Path(file).suffix.lower()](file, ()).locate(name)
        if not isinstance(location, ArrayLocation):
            refuse(f"{file}: {name}", "is compressed", "be stored as it is, to be mapped")
        return location


def lm_head_files(spec: str) -> list[str]:
    """The files of a head and the other files of its model; outputs must not replace them."""
    model = _model(spec)
    folder, beside = Path(model.path).parent, ("*.safetensors", f"*{_INDEX}", _ADAPTER, Path(model.config.path).name)
    others = (str(file) for pattern in beside for file in folder.glob(pattern))
    return [model.path, model.locate(_weight_name(model)).path, *others]


def open_lm_head(spec: str, depth: int, logit_scale: float | None = None, softcap: float | None = None) -> LmHead:
    """Open the head FILE or FILE:NAME for hidden states of a width; a given transform replaces config.json's."""
    model = _model(spec)
    name = _weight_name(model)
    place = model.locate(name)
    label = name or "the head"
    weight = _oriented(place, label, depth)
    biases = [one for one in (f"{name.removesuffix('weight')}bias", *_BIASES) if one in model.files and one != name]
    transform = model.config.transform(logit_scale, softcap)
    if model.name is None:
        _check_whole(model, name, biases)
        model.config.check_classes(place.path, label, len(weight))
    bias = None
    for one in biases:
        part = np.array(model.locate(one).load())
        if part.shape not in ((len(weight),), (1, len(weight))) or not is_float(part.dtype):
            got = f"{one} is {part.dtype} of shape {part.shape}"
            refuse(place.path, got, f"be {FLOATS} of shape {weight.shape[:1]}")
        bias = part.reshape(-1) if bias is None else bias + part.reshape(-1)
    if bias is not None and transform.is_of_hidden:
        fits = f"scale logits instead: come with {named('logit_scale', ...)}"
        refuse(place.path, f"has {biases[0]}, and hidden states are scaled", fits)
    norm, weights = _norm(model, depth)
    files = [place.path, *(model.locate(one).path for one in (*biases, norm) if one is not None)]
    return LmHead(place.path, name or None, weight, bias, *transform[:3], norm, weights, tuple(dict.fromkeys(files)))


def _oriented(place: ArrayLocation, name: str, depth: int) -> Array:
    """The mapped weight (V, D); it is transposed if it is stored as (D, V)."""
    shape = place.shape
    if not is_float(place.dtype):
        refuse(place.path, f"{name} has dtype {place.dtype}", f"be {FLOATS}")
    if len(shape) != 2 or (shape[0] == depth) == (shape[1] == depth):
        fits = f"have shape (V, {depth}) or ({depth}, V), V not {depth}, to fit hidden states of {depth} features"
        refuse(place.path, f"{name} has shape {shape}", fits)
    weight = place.load()
    return weight if shape[1] == depth else weight.T


def _model(spec: str) -> _HeadFiles:
    """The files of a head FILE or FILE:NAME."""
    path, name = spec, None
    if not Path(spec).exists():
        for colon in re.finditer(":(?=.)", spec):  # the path and the name may hold others
            if Path(spec[: colon.start()]).exists():
                path, name = spec[: colon.start()], spec[colon.end() :]
                break
    if Path(path).is_dir():
        path = _in_directory(path)
    if path.endswith(_INDEX):
        files = _in_index(path)
    else:
        opener = _OPENERS.get(Path(path).suffix.lower())
        if opener is None:
            open_regular(path).close()  # which refuses what is not there
            refuse(path, "is not a file of a head", f"be {HEAD_FILES}")
        files = dict.fromkeys(opener(path, ()).names, path)
        if "" in files:
            reject_array_name(path, name)
        index = _SHARD.sub(_INDEX, path)  # where the bias may be in another shard
        if index != path and any(head in files for head in _HEADS) and Path(index).is_file():
            path, files = index, _in_index(index)
    return _HeadFiles(path, files, name, read_config(path))


def _in_directory(path: str) -> str:
    """The index of the shards in the directory of a model, or else its only file."""
    files = list(Path(path).glob(f"*{_INDEX}")) or list(Path(path).glob("*.safetensors"))
    if len(files) != 1:
        refuse(path, f"has {len(files)} indices of shards or .safetensors files", "contain only one; or pass the file")
    return str(files[0])


def _in_index(path: str) -> dict[str, Any]:
    """The file of each array of a model in shards."""
    shards = read_object(path, safetensors.MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(shards, dict):
        raise_error("unreadable", path=path, got="it has no object weight_map")
    return shards


def _weight_name(model: _HeadFiles) -> str:
    """The name of the head's weight: the given one, or a usual one.

    That of the embedding is only taken where the config says so, and no head is there in another form, say quantized.
    """
    names = model.files
    name = model.name if model.name is not None else next((one for one in _HEADS if one in names), None)
    if name is not None:
        return name
    embedding = next((one for one in _EMBEDDINGS if one in names), None)
    other = next(filter(_OTHER_HEAD.search, names), None)
    if len(names) == 1 and not embedding and not other:
        return next(iter(names))
    got, fits = "has no head with a usual name", f"have {_HEADS[0]}, or be given as FILE:NAME"
    if _SHARD.search(model.path):
        got, fits = "is one of several shards, without a head", f"be the model's index (*{_INDEX})"
    elif embedding and not any("lm_head" in one for one in names):
        reason = f"it contains {other}, the head of another task" if other else model.config.why_not_tied()
        if reason is None:
            return embedding
        got = f"has no head except the embedding {embedding}, and {reason}"
    return refuse(model.path, got, fits)


def _check_whole(model: _HeadFiles, name: str, biases: Sequence[str]) -> None:
    """Refuse a weight that is part of a head, such as a quantized one, or that its model may not use unchanged."""
    got = None
    prefix = name.removesuffix("weight") if name.endswith(".weight") else None
    parts = [other for other in model.files if prefix and other.startswith(prefix) and other not in (name, *biases)]
    parts += [other for other in model.files if other.startswith(_BEFORE_HEAD)]
    others = [other for other in _EMBEDDINGS if other in model.files and other != name]
    is_tied = name in _EMBEDDINGS or model.config.says_tied
    if parts:
        got = f"has {parts[0]} next to {name}"
    elif model.config.is_normalized:
        got = f"is of type {model.config.kind!r}, which normalizes the rows of its head"
    elif model.config.has_bias and not biases:
        got = "has no bias of the head, but config.json has lm_head_bias true"
    elif Path(model.path).with_name(_ADAPTER).exists():
        got = f"has {_ADAPTER} next to it, which may change the head"
    elif is_tied and others and not any(_are_alike(model, name, other) for other in others):
        got = f"has {name} and a different {others[0]}, though the model ties them"
    if got is not None:
        refuse(model.path, got, "contain the head as the model uses it, or be given as FILE:NAME")


def _norm(model: _HeadFiles, depth: int) -> tuple[str | None, tuple[Array, ...]]:
    """The name of the final norm's weight, and the values of this weight and perhaps its bias, if they fit."""
    name = next((name for name in _NORMS if name in model.files), None)
    if name is None:
        return None, ()
    names = [one for one in (name, f"{name.removesuffix('weight')}bias") if one in model.files]
    try:
        places = [model.locate(one) for one in names]
    except OSError:  # its shard is not there
        return None, ()
    if not all(place.shape == (depth,) and is_float(place.dtype) for place in places):
        return None, ()
    weights = tuple(place.load().astype(np.float64) for place in places)
    return (name, weights) if np.isfinite(weights).all() else (None, ())


def _are_alike(model: _HeadFiles, *names: str) -> bool:
    """Whether two weights are the same, judging by some of their rows."""
    first, second = (model.locate(name).load() for name in names)
    if first.shape != second.shape:
        return False
    rows = np.linspace(0, max(0, len(first) - 1), min(_COMPARED_ROWS, len(first))).astype(int)
    return all(first[row].tobytes() == second[row].tobytes() for row in rows)


# -- config.json -------------------------------------------------------------------------------------------------------

_NAME = "config.json"
_MAX_BYTES = 16 << 20
_MAX_NUMBER = 1e30
_TEXT_CONFIGS = ("text_config", "decoder", "language_config", "llm_config", "thinker_config")  # of parts of a model
_T5 = "t5 umt5 longt5 pop2piano switch_transformers udop"
# Each key with its effect, and the types of models for which the effect is known: first the types whose config must
# have the key, since its default changes logits, then the others. The value caps, multiplies or divides the logits or
# the hidden states; "nothing" is for keys that do not change logits, though `_may_change_logits` suspects them.
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
_NORMALISED = ("baichuan",)  # model types that normalize the rows of their head
_WITH_HEAD = re.compile("CausalLM|ConditionalGeneration|LMHead|MTModel|ImageTextToText")  # names of models with a head


def _may_change_logits(key: str) -> bool:
    """Whether the name of a key suggests a scale or cap of logits, so that it is refused if its effect is unknown.

    This is a judgement: a new name of such a key should be suspected, and the names of other keys should not be. A name
    is suspected if it speaks of logits, or of a scale and an output, unless it speaks of another part of the model.
    """

    def has(*words: str) -> bool:
        return any(word in key for word in words)

    if key.startswith(("embed", "key_", "num_")) or has(*_OTHER_PARTS):
        return False
    names_logits = has("logit", "softcap", "soft_cap", "mup", "multiplier", "lm_head", "unembed")
    return names_logits or (has("scal", "alpha", "temper") and has("output", "head", "width", "final"))


class Transform(NamedTuple):
    """The transform of the products of hidden states and the head into logits."""

    logit_scale: float
    softcap: float | None
    note: str  # where it is from, for people
    is_of_hidden: bool  # whether a factor is of the hidden states, before a bias is added


class ModelConfig:
    """The part of a config.json, if present, that describes the text model."""

    def __init__(self, path: str, parts: list[dict[str, Any]]) -> None:
        self._parts = parts
        self._ties = {value for value in self._values("tie_word_embeddings") if isinstance(value, bool)}
        self.path: str = path
        self.exists: bool = bool(parts)
        self.kind: str = str(next(iter(self._values("model_type")), ""))
        self.has_bias: bool = True in self._values("lm_head_bias")
        self.is_normalized: bool = self.kind in _NORMALISED
        # T5's is the head that is stored, if one is, whatever is in the config
        self.says_tied: bool = self._ties == {True} and self.kind not in _T5.split()

    def why_not_tied(self) -> str | None:
        """Why the embedding is not used as the head; None if it is the head."""
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
        """Refuse a head whose number of classes differs from the vocabulary's, as transformers does."""
        sizes = [size for key in ("vocab_size", "decoder_vocab_size") for size in self._values(key)]
        if sizes and n not in sizes:
            got = f"{name} has {n} classes, but {_NAME} has vocab_size {sizes[-1]}"
            refuse(path, got, "have as many, or be given as FILE:NAME")

    def transform(self, logit_scale: float | None, softcap: float | None) -> Transform:
        """The transform of the logits; a given scale or cap (0 for no cap) replaces the config's."""
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
        """Each value that changes logits, and its effect; an unknown one is refused unless it is replaced."""
        if self.kind in _T5.split() and self._scales_outputs():
            yield self._number("d_model") ** -0.5, "multiplies hidden states"
        suspects = {key for part in self._parts for key in part if _may_change_logits(key)}
        for key in sorted(suspects | _NAMES):
            is_cap, effect = "cap" in key, _EFFECTS.get((key, self.kind))
            values = [value for value in self._values(key) if value is not False]
            fits = cap_is_given if is_cap else scale_is_given
            needing = [kind for kind in self._values("model_type") if (key, str(kind)) in _NEEDED]
            if not values and needing and not fits:
                self._refuse(key, f"is missing, but models of type {needing[0]!r} have it")
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
        """Whether a model like T5 scales its hidden states; older configs show it only by the tied embedding."""
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
        return self._refuse(key, "is missing or is not a positive number")

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
    """A config, and its parts that are about text."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key in _TEXT_CONFIGS or (key.endswith("_config") and "vocab_size" in value)):
            yield from _parts(value)


def _is_positive(value: Any) -> bool:
    """Whether a value of JSON is a positive number that floats can hold."""
    return type(value) in (int, float) and 0 < value < _MAX_NUMBER
