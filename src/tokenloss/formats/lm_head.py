"""The projection of hidden states onto the vocabulary, as files of models hold it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenloss._dtypes import FLOATS
from tokenloss._errors import raise_error
from tokenloss.formats import npy, npz, safetensors
from tokenloss.formats._base import is_float, library_errors, open_regular, reject_array_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenloss._types import Array
    from tokenloss.formats._base import ArrayLocation

_READERS = {".npy": npy, ".npz": npz, ".safetensors": safetensors}
_INDEX = ".safetensors.index.json"  # of the shards of a model
_HEADS = (
    "lm_head.weight", "output.weight", "embed_out.weight", "head.weight", "language_model.lm_head.weight",
    "transformer.output_layer.weight", "lm_head",
)  # fmt: skip
# of models that share the weight of their embedding with the head
_EMBEDDINGS = (
    "model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "tok_embeddings.weight",
    "model.decoder.embed_tokens.weight", "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight", "transformer.word_embeddings.weight", "gpt_neox.embed_in.weight",
    "backbone.embedding.weight", "backbone.embeddings.weight",
)  # fmt: skip


class LmHead(NamedTuple):
    """The projection onto the vocabulary; its weight is mapped, perhaps as a transposed view."""

    path: str
    name: str | None  # of the weight, where arrays have names
    weight: Array  # (V, D)
    bias: Array | None  # (V,)


def lm_head_files(spec: str) -> list[str]:
    """The file that holds the weight of a head, and those of its model beside it."""
    path = Path(_resolved(spec)[0])
    beside = itertools.chain.from_iterable(map(path.parent.glob, ("config.json", f"*{_INDEX}", "*.safetensors")))
    return [str(path), *map(str, beside)]


def open_lm_head(spec: str, depth: int) -> LmHead:
    """Open the head FILE or FILE:NAME for hidden states of a width."""
    path, name = _resolved(spec)
    chosen: list[str] = []

    def choose(names: Collection[str]) -> list[str]:
        weight = name or _usual_name(path, names)
        if weight not in names:
            raise_error("content", path=path, got=f"holds no {weight}", fits="hold it, to be the head")
        bias = weight.removesuffix("weight") + "bias"
        chosen[:] = [weight, bias] if weight.endswith("weight") and bias in names else [weight]
        return chosen

    reader = _READERS[Path(path).suffix.lower()]
    if reader is npy:
        reject_array_name(path, name)
    place, *biases = reader.locate(path, choose)
    weight = _oriented(place, chosen[0] if chosen else "the head", depth)
    bias = np.array(biases[0].map()) if biases else None
    if bias is not None and (bias.shape != weight.shape[:1] or not is_float(bias.dtype)):
        got = f"{chosen[1]} is {bias.dtype} of shape {bias.shape}"
        raise_error("content", path=path, got=got, fits=f"be {FLOATS} of shape {weight.shape[:1]}")
    return LmHead(path, chosen[0] if chosen else None, weight, bias)


def _oriented(place: ArrayLocation, name: str, depth: int) -> Array:
    """The mapped weight (V, D); it is transposed if it is stored as (D, V)."""
    shape = place.shape
    if not is_float(place.dtype):
        raise_error("content", path=place.path, got=f"{name} has dtype {place.dtype}", fits=f"be {FLOATS}")
    if len(shape) != 2 or (shape[0] == depth) == (shape[1] == depth):
        fits = f"have shape (V, {depth}) or ({depth}, V), V not {depth}, to fit hidden states of {depth} features"
        raise_error("content", path=place.path, got=f"{name} has shape {shape}", fits=fits)
    weight = place.map()
    return weight if shape[1] == depth else weight.T


def _resolved(spec: str) -> tuple[str, str | None]:
    """The file that holds a head, and the name of its weight if it is known."""
    path, name = spec, None
    if not Path(spec).exists():
        for colon in re.finditer(":(?=.)", spec):  # both may hold one
            if Path(spec[: colon.start()]).exists():
                path, name = spec[: colon.start()], spec[colon.end() :]
                break
    if Path(path).is_dir():
        path = _in_directory(path)
    if path.endswith(_INDEX):
        return _in_index(path, name)
    if Path(path).suffix.lower() not in _READERS:
        open_regular(path).close()  # which refuses what is not there
        fits = f"be a .safetensors, .npz or .npy file, an index of shards (*{_INDEX}), or a directory of a model"
        raise_error("content", path=path, got="is no file of a head", fits=fits)
    return path, name


def _in_directory(path: str) -> str:
    """The index of the shards of a model, or else its only file."""
    found = list(Path(path).glob(f"*{_INDEX}")) or list(Path(path).glob("*.safetensors"))
    if len(found) != 1:
        got = f"holds {len(found)} indices of shards or .safetensors files"
        raise_error("content", path=path, got=got, fits="hold one, or come as a file")
    return str(found[0])


def _in_index(path: str, name: str | None) -> tuple[str, str]:
    """The shard that holds a head, and the name of its weight."""
    with open_regular(path) as file, library_errors(path):
        index = json.loads(file.read(safetensors.MAX_HEADER_BYTES))
        shards = index["weight_map"] if isinstance(index, dict) else None
        if not isinstance(shards, dict):
            raise ValueError("it has no object weight_map")
    name = name or _usual_name(path, shards)
    shard = shards.get(name)
    # no name in an index is used as a path
    if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise_error("content", path=path, got=f"names {shard!r} for {name}", fits="name a .safetensors file beside it")
    return str(Path(path).with_name(shard)), name


def _usual_name(path: str, names: Collection[str]) -> str:
    """The name of the weight of the head among those of a model's arrays.

    That of the embedding is only taken where the head cannot be elsewhere, or in another form, say quantised.
    """
    is_shard = re.search(r"-\d+-of-\d+\.safetensors$", path) is not None
    usual: tuple[str, ...] = _HEADS
    if not is_shard and not any("lm_head" in name for name in names):
        usual += (*_EMBEDDINGS, *(names if len(names) == 1 else ()))
    found = next((name for name in usual if name in names), None)
    if found is None:
        got = "is one of several shards, without a head" if is_shard else "holds no head of a usual name"
        fits = f"be the model's index (*{_INDEX})" if is_shard else f"hold {_HEADS[0]}, or come as FILE:NAME"
        raise_error("content", path=path, got=got, fits=fits)
    return found
