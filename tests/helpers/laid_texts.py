"""Files of scores and of tokenizers for a text, given the tokens of a model as bytes."""

import base64
import json
from types import SimpleNamespace

import numpy as np


def tokenizer(path, pieces):
    """A tokenizer in the layout of tekken.json: id 0 is special, and the pieces have the ids 1, 2, ..."""
    vocab = [{"rank": i, "token_bytes": base64.b64encode(piece).decode()} for i, piece in enumerate(pieces)]
    config = {"default_num_special_tokens": 1, "default_vocab_size": 1 + len(pieces)}
    path.write_text(json.dumps({"config": config, "vocab": vocab}))
    return path


def model(folder, name, documents, nll=None):
    """A model that scored these tokens of documents, of which b"" is special: its files, as arguments.

    It scored all tokens but the first one of each document, or those that have a loss in `nll`.
    """
    pieces = sorted({piece for tokens in documents for piece in tokens} - {b""})
    ids = np.array([1 + pieces.index(piece) if piece else 0 for tokens in documents for piece in tokens])
    segments = np.repeat(np.arange(len(documents)), [*map(len, documents)])
    path, shape = folder / f"{name}.npz", (len(ids), 1 + len(pieces))
    logits = np.random.default_rng(len(ids)).normal(size=shape, scale=2)
    if nll is None:
        np.savez(path, logits=logits, input_ids=ids, segment_ids=segments)
    else:
        probs = np.tile((1 - np.exp(-np.array(nll))[:, None]) / (shape[1] - 1), shape[1])
        probs[np.arange(len(ids)), ids] = np.exp(-np.array(nll))
        np.savez(path, probs=probs, targets=ids, segment_ids=segments)
    file = tokenizer(folder / f"{name}.json", pieces)
    return SimpleNamespace(path=path, tokenizer=file, ids=ids, logits=logits, segments=segments)


def cut(text, size):
    """The bytes of a text, so many in each token."""
    data = text.encode()
    return [data[i : i + size] for i in range(0, len(data), size)]


def words(text):
    """The words of a text, each with the space before it."""
    first, *others = text.split(" ")
    return [first.encode(), *(f" {word}".encode() for word in others)]
