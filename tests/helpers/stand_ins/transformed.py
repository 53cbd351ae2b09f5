"""A model of transformers whose weights are rounded to bfloat16, in the place of a quantized one."""

import torch
from transformers import AutoModelForCausalLM


def load(path):
    """A function that gives the logits of ids, (1, T, V) in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().eval()

    def logits_of(ids):
        with torch.inference_mode():
            return model(ids).logits

    return logits_of
