"""Score a text with llama-cpp-python, given a GGUF file: the loss by its own log-probabilities, and tokenloss's.

Without a file, random logits are scored that come as a model's do.
"""

import sys

import numpy as np

import tokenloss

TEXT = b"In the beginning God created the heaven and the earth. And the earth was without form, and void."


class StandIn:
    """What a llama_cpp.Llama has after it has evaluated a text of bytes; rows beyond the text are of no use."""

    def __init__(self, text: bytes) -> None:
        self.n_tokens = len(text)
        self.input_ids = np.frombuffer(text.ljust(self.n_tokens + 100), np.uint8).astype(np.intc)
        self.scores = 3 * np.random.default_rng(0).standard_normal((len(text) + 100, 256), np.float32)

    @staticmethod
    def logits_to_logprobs(logits: np.ndarray) -> np.ndarray:
        """Logarithm of the softmax, in float32."""
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


if __name__ == "__main__":
    if sys.argv[1:]:
        from llama_cpp import Llama

        llm = Llama(sys.argv[1], n_ctx=512, logits_all=True, verbose=False)
        llm.eval(llm.tokenize(TEXT))
    else:
        llm = StandIn(TEXT)
    logits, targets = llm.scores[: llm.n_tokens - 1], llm.input_ids[1 : llm.n_tokens]  # row j: token j + 1
    own = -llm.logits_to_logprobs(logits)[np.arange(len(targets)), targets].mean()
    print(f"llama-cpp-python {own:.9g}, tokenloss {tokenloss.cross_entropy(logits, targets):.9g}")
