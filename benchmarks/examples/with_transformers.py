"""Score a text with transformers: the loss that its model returns, and tokenloss's."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenloss import LossMeter, cross_entropy, next_token

TEXT = b"In the beginning God created the heaven and the earth. And the earth was without form, and void."

if __name__ == "__main__":
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()  # of random weights, for bytes; AutoModelForCausalLM.from_pretrained(...)
    ids = torch.tensor([list(TEXT)])
    with torch.inference_mode():
        output = model(ids, labels=ids)

    logits, targets, _ = next_token(output.logits, ids)  # views of tensors, which are read where they are
    nll = cross_entropy(logits, targets, reduction="none")
    meter = LossMeter()
    meter.update(nll, n_bytes=len(TEXT) - 1)
    print(f"transformers {output.loss:.9g}, tokenloss {meter.loss:.9g}")
    print(f"± {meter.stderr:.3g} nats per token, {meter.bits_per_byte:.4g} bits per byte")
