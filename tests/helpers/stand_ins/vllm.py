"""What the examples use of vLLM 0.32 without a server."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class SamplingParams:
    """A request."""

    prompt_logprobs: int
    max_tokens: int


@dataclass
class Logprob:
    """A token in the place of a prompt's own."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class RequestOutput:
    """The answer to a request; the first token of a prompt has None in the place of log-probabilities."""

    prompt_token_ids: list
    prompt_logprobs: list


class LLM:
    """A model that answers requests."""

    def __init__(self, model, *, dtype="float32", max_model_len=None, enforce_eager=False):
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    def generate(self, prompts, sampling_params):
        """Answer a request for each of some prompts."""
        assert sampling_params.max_tokens == 1
        return [self._answer(self._tokenizer(prompt)["input_ids"], sampling_params) for prompt in prompts]

    def _answer(self, ids, params):
        with torch.inference_mode():
            rows = self._model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        positions = [None]
        for row, own in zip(rows, ids[1:], strict=True):
            tokens = dict.fromkeys([own, *row.topk(params.prompt_logprobs).indices.tolist()])  # its own comes first
            positions.append({
                token: Logprob(row[token].item(), int((row >= row[token]).sum()), self._tokenizer.decode([token]))
                for token in tokens
            })  # fmt: skip
        return RequestOutput(ids, positions)
