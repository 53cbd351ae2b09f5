"""Responses of servers, samples of lm-evaluation-harness and lists of top classes, with references: `data/clients`."""

import functools
import gzip
import json
from typing import NamedTuple

import numpy as np
from places import CLIENTS

from tokenloss import compare_files

COMPLETIONS = [f"vllm/completion_{i:02}.json" for i in range(10)]  # the prompt of 08 is a single token


class Reference(NamedTuple):
    """A prompt's tokens by the full logits behind a response, in long double; row j is of the token at position j.

    `ids`, `logprobs` and `ranks` (1 + number of other classes that are not less likely) are of the prompt's token,
    `top_ids` and `top_logprobs` of the 5 likeliest classes at its position; the first token has nan, 0 and -1.
    `next_top_ids` and `next_top_logprobs` are of the first new token; -1 and nan where its logits are not known.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    next_top_ids: np.ndarray
    next_top_logprobs: np.ndarray


def unpacked(name):
    """Names of the files that a packed one holds, and their text."""
    with gzip.open(CLIENTS / name, "rt", encoding="utf-8", newline="") as file:
        return {entry["file"]: entry["text"] for entry in map(json.loads, file)}


@functools.cache
def responses():
    """Every response as a server sent it, by names such as "vllm/completion_00.json"."""
    return unpacked("responses.jsonl.gz")


@functools.cache
def samples():
    """Every file of samples, by names such as "base/mc.jsonl" and "noise/rolling.jsonl"."""
    return unpacked("samples.jsonl.gz")


@functools.cache
def references():
    """References from full logits, by the name of the response."""
    with np.load(CLIENTS / "responses_reference.npz") as file:
        arrays = dict(file)
    bounds, result = arrays["cu_seqlens"], {}
    for i, name in enumerate(arrays["names"].tolist()):
        tokens = slice(bounds[i], bounds[i + 1])
        own = [arrays[column][tokens] for column in Reference._fields[:5]]
        result[name] = Reference(*own, *(arrays[column][i] for column in Reference._fields[5:]))
    return result


def other_references():
    """What else is known of a response, by its name: of chats, the log-probabilities of each token."""
    return json.loads((CLIENTS / "responses_reference.json").read_bytes())


def samples_reference():
    """Figures of each run ("base", "noise") and task, those of the harness, and of the paired differences."""
    return json.loads((CLIENTS / "samples_reference.json").read_bytes())


@functools.cache
def topk():
    """The 40 likeliest classes of two models at each position of ten documents, and bounds of their divergence."""
    with np.load(CLIENTS / "topk.npz") as file:
        return {name: array.astype(np.int64) if array.dtype.kind == "i" else array for name, array in file.items()}


def save(path, *names):
    """Write files of these names, one after the other: the text of each as it is, on lines of its own."""
    texts = responses() | samples()
    path.write_bytes("".join(texts[name].rstrip("\n") + "\n" for name in names).encode())
    return path


def save_lines(path, *values):
    """Write values as JSON lines; a string is a line as it is."""
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def response(name):
    """A response as a value of its own, to be changed."""
    return json.loads(responses()[name])


def chat(*tokens):
    """A response of a chat; tokens are a text, a log-probability and perhaps a list of pairs of these."""
    content = [
        {"token": text, "logprob": logprob, "top_logprobs": [{"token": other, "logprob": x} for other, x in tops]}
        for text, logprob, tops in ((*token, [])[:3] for token in tokens)
    ]
    text = "".join(token[0] for token in tokens)
    return {"choices": [{"index": 0, "message": {"content": text}, "logprobs": {"content": content}}]}


def compare_pair(base, other, **options):
    """What `compare_files` finds of two files."""
    (result,) = compare_files(base, {"other": other}, **options).values()
    return result
