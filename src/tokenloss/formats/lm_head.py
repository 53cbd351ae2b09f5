"""The projection of hidden states onto the vocabulary, as files of models hold it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import named, raise_error, refuse
from tokenloss.formats import safetensors
from tokenloss.formats.base import is_float, open_regular
from tokenloss.formats.json_text import read_object
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.model_config import read_config
from tokenloss.formats.readers import FORMATS, either
from tokenloss.formats.scores_file import LmHead, reject_array_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._core.types import Array
    from tokenloss.formats.model_config import ModelConfig

_INDEX = ".safetensors.index.json"  # of the shards of a model
_OPENERS = {suffix: one.open for one in FORMATS if one.open and one.may_hold_head for suffix in one.suffixes}
HEAD_FILES = either([
    *(one.words for one in FORMATS if one.may_hold_head), f"an index (*{_INDEX})", "a directory of a model",
])  # fmt: skip
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_ADAPTER = "adapter_config.json"

# Names of weights in the files of models: of the head, of heads for other tasks, of the final norm, of layers between
# that and the head, of biases that stand alone, and of the embedding, whose weight may be that of the head.
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


class _Model(NamedTuple):
    """The file of a head, or an index of several; the file of each array by name; and the config beside it."""

    path: str
    files: Mapping[str, Any]
    name: str | None  # of the weight, if it was given
    config: ModelConfig

    def locate(self, name: str) -> ArrayLocation:
        """Location of an array."""
        file = self.files.get(name)
        if file is None:
            refuse(self.path, f"holds no {name}", "hold it, to be the head")
        # no name in an index is used as a path
        if self.path.endswith(_INDEX):
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                refuse(self.path, f"names {file!r} for {name}", "name a .safetensors file beside it")
            file = str(Path(self.path).with_name(file))
        found = _OPENERS[Path(file).suffix.lower()](file, ()).locate(name)
        if not isinstance(found, ArrayLocation):
            refuse(f"{file}: {name}", "is compressed", "be stored as it is, to be mapped")
        return found


def lm_head_files(spec: str) -> list[str]:
    """The files of a head and the others of its model, none of which an output may replace."""
    model = _model(spec)
    folder, beside = Path(model.path).parent, ("*.safetensors", f"*{_INDEX}", _ADAPTER, Path(model.config.path).name)
    found = (str(file) for pattern in beside for file in folder.glob(pattern))
    return [model.path, model.locate(_weight_name(model)).path, *found]


def open_lm_head(spec: str, depth: int, logit_scale: float | None = None, softcap: float | None = None) -> LmHead:
    """Open the head FILE or FILE:NAME for hidden states of a width; a transform replaces that of config.json."""
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


def _model(spec: str) -> _Model:
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
            refuse(path, "is no file of a head", f"be {HEAD_FILES}")
        files = dict.fromkeys(opener(path, ()).names, path)
        if "" in files:
            reject_array_name(path, name)
        index = _SHARD.sub(_INDEX, path)  # where the bias may be in another shard
        if index != path and any(head in files for head in _HEADS) and Path(index).is_file():
            path, files = index, _in_index(index)
    return _Model(path, files, name, read_config(path))


def _in_directory(path: str) -> str:
    """The index of the shards in the directory of a model, or else its only file."""
    found = list(Path(path).glob(f"*{_INDEX}")) or list(Path(path).glob("*.safetensors"))
    if len(found) != 1:
        refuse(path, f"holds {len(found)} indices of shards or .safetensors files", "hold one, or come as a file")
    return str(found[0])


def _in_index(path: str) -> dict[str, Any]:
    """The file of each array of a model in shards."""
    shards = read_object(path, safetensors.MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(shards, dict):
        raise_error("unreadable", path=path, got="it has no object weight_map")
    return shards


def _weight_name(model: _Model) -> str:
    """The name of the weight of the head: the one that was given, or a usual one.

    That of the embedding is only taken where the config says so, and no head is there in another form, say quantised.
    """
    names = model.files
    name = model.name if model.name is not None else next((one for one in _HEADS if one in names), None)
    if name is not None:
        return name
    embedding = next((one for one in _EMBEDDINGS if one in names), None)
    other = next(filter(_OTHER_HEAD.search, names), None)
    if len(names) == 1 and not embedding and not other:
        return next(iter(names))
    got, fits = "holds no head of a usual name", f"hold {_HEADS[0]}, or come as FILE:NAME"
    if _SHARD.search(model.path):
        got, fits = "is one of several shards, without a head", f"be the model's index (*{_INDEX})"
    elif embedding and not any("lm_head" in one for one in names):
        reason = f"it holds {other}, the head of another task" if other else model.config.why_not_tied()
        if reason is None:
            return embedding
        got = f"holds no head but the embedding {embedding}, and {reason}"
    return refuse(model.path, got, fits)


def _check_whole(model: _Model, name: str, biases: Sequence[str]) -> None:
    """Refuse a weight that is a part of a head, say a quantised one, or that its model may not use as it is."""
    got = None
    prefix = name.removesuffix("weight") if name.endswith(".weight") else None
    parts = [other for other in model.files if prefix and other.startswith(prefix) and other not in (name, *biases)]
    parts += [other for other in model.files if other.startswith(_BEFORE_HEAD)]
    others = [other for other in _EMBEDDINGS if other in model.files and other != name]
    is_tied = name in _EMBEDDINGS or model.config.says_tied
    if parts:
        got = f"holds {parts[0]} beside {name}"
    elif model.config.is_normalised:
        got = f"is of type {model.config.kind!r}, which normalises the rows of its head"
    elif model.config.has_bias and not biases:
        got = "holds no bias of the head, and config.json has lm_head_bias true"
    elif Path(model.path).with_name(_ADAPTER).exists():
        got = f"has {_ADAPTER} beside it, which may change the head"
    elif is_tied and others and not any(_are_alike(model, name, other) for other in others):
        got = f"holds {name} and another {others[0]}, which the model ties"
    if got is not None:
        refuse(model.path, got, "hold the head as the model uses it, or come as FILE:NAME")


def _norm(model: _Model, depth: int) -> tuple[str | None, tuple[Array, ...]]:
    """Name of the weight of the final norm, and its values and perhaps those of its bias, if they fit hidden states."""
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


def _are_alike(model: _Model, *names: str) -> bool:
    """Whether two weights are the same, by some of their rows."""
    first, second = (model.locate(name).load() for name in names)
    if first.shape != second.shape:
        return False
    rows = np.linspace(0, max(0, len(first) - 1), min(_COMPARED_ROWS, len(first))).astype(int)
    return all(first[row].tobytes() == second[row].tobytes() for row in rows)
