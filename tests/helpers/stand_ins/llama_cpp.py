"""What the examples use of llama-cpp-python 0.3.36, with the small model of tests/data in place of any GGUF file."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Llama:
    """The names and types of `llama_cpp.Llama`."""

    def __init__(self, model_path, *, n_ctx=512, logits_all=False, verbose=True):
        assert logits_all
        self._tokenizer = AutoTokenizer.from_pretrained("tests/data/model")
        self._model = AutoModelForCausalLM.from_pretrained("tests/data/model", dtype="float32")
        self.input_ids = np.zeros(n_ctx, np.intc)
        self.scores = np.zeros((n_ctx, self._model.config.vocab_size), np.single)
        self.n_tokens = 0

    def tokenize(self, text, add_bos=True, special=False):
        """The ids of a text of bytes; the model's tokenizer adds no token in front, whatever `add_bos` is."""
        return self._tokenizer(text.decode())["input_ids"]

    def reset(self):
        """Forget what was evaluated."""
        self.n_tokens = 0

    def eval(self, tokens):
        """Evaluate ids, after `reset` alone."""
        assert self.n_tokens == 0
        self.n_tokens = len(tokens)
        self.input_ids[: self.n_tokens] = tokens
        with torch.inference_mode():
            self.scores[: self.n_tokens] = self._model(torch.tensor([tokens])).logits[0]
