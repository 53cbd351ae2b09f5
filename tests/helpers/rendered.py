"""Responses in the layouts of servers, made of the log-probabilities of all classes."""

import numpy as np

from tokenloss import log_softmax

VOCABULARY = [f"t{i}" for i in range(40)]


def vllm(ids, logprobs, k):
    """A response of vLLM for a prompt of these ids; row j of the log-probabilities is of token j + 1."""
    entries = [None]
    for token, row in zip(ids[1:], logprobs, strict=True):
        order = np.argsort(-row, kind="stable")
        rank = {int(c): i + 1 for i, c in enumerate(order)}
        named = dict.fromkeys([int(token), *map(int, order[:k])])
        entries.append({str(c): {"logprob": float(row[c]), "rank": rank[c], "decoded_token": _text(c)} for c in named})
    choice = {"index": 0, "text": "", "prompt_logprobs": entries, "prompt_token_ids": [int(i) for i in ids]}
    return {"object": "text_completion", "choices": [choice]}


def _text(c):
    """The text of a class; None beyond the vocabulary."""
    return VOCABULARY[c] if c < len(VOCABULARY) else None


def sglang(ids, logprobs, k, asked):
    """A response of SGLang for a prompt of these ids, with the classes that its request asked for."""
    lists = {"token": [[None, int(ids[0]), None]], "top": [None], "token_ids": [None]}
    for token, row in zip(ids[1:], logprobs, strict=True):
        lists["token"].append([float(row[token]), int(token), None])
        for name, classes in (("top", np.argsort(-row, kind="stable")[:k]), ("token_ids", asked)):
            lists[name].append([[float(row[c]), int(c), None] for c in classes])
    return {"text": "", "meta_info": {f"input_{name}_logprobs": own for name, own in lists.items()}}


def spelled(text):
    """The bytes of a token's text, which may be a part of a character."""
    return list(text.encode()) if text not in ("", "\N{REPLACEMENT CHARACTER}") else [0xE2]


def chat(ids, logprobs, k, texts=VOCABULARY):
    """What a server of OpenAI's layout generated: tokens by text alone."""
    content = []
    for token, row in zip(ids, logprobs, strict=True):
        top = [
            {"token": texts[c], "logprob": float(row[c]), "bytes": spelled(texts[c])}
            for c in np.argsort(-row, kind="stable")[:k].tolist()
        ]
        content.append(
            {"token": texts[token], "logprob": float(row[token]), "bytes": spelled(texts[token]), "top_logprobs": top}
        )
    text = "".join(texts[token] for token in ids)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
    return {"object": "chat.completion", "choices": [choice]}


def batch(name, body, status=200):
    """A line of a batch file."""
    error = None if status == 200 else {"message": "too long"}
    return {"id": "x", "custom_id": name, "response": {"status_code": status, "body": body}, "error": error}


class Documents:
    """Prompts, and log-probabilities of two models in float64 after each token but the last."""

    def __init__(self, rng, lengths=(6, 9, 1, 4), noise=0.5):
        self.ids = [rng.integers(0, 40, n) for n in lengths]
        logits = [rng.normal(0, 2, (n - 1, 40)) for n in lengths]
        self.base = [log_softmax(rows) for rows in logits]
        self.other = [log_softmax(rows + noise * rng.normal(0, 1, rows.shape)) for rows in logits]

    def responses(self, model, k, make=vllm):
        """A response for each prompt."""
        return [make(ids, rows, k) for ids, rows in zip(self.ids, getattr(self, model), strict=True)]

    def rows(self, model):
        """All rows."""
        return np.concatenate(getattr(self, model))

    @property
    def targets(self):
        """The tokens that have a row before them."""
        return np.concatenate([ids[1:] for ids in self.ids])

    @property
    def segment_ids(self):
        return np.repeat(np.arange(len(self.ids)), [len(ids) - 1 for ids in self.ids])
