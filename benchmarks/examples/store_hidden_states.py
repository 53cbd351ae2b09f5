"""Store the final hidden states of a padded batch of texts, for `tokenloss score OUT --shift --lm-head MODEL`.

MODEL is the folder of any causal language model that transformers can load. TEXTS is a file with one text on each line.
If OUT ends in .npz or .safetensors, all texts are one batch in this file; else OUT is a folder, which gets a .npz for
each batch. Each file holds `hidden_states`, of which the model's head would make logits, `input_ids`, `attention_mask`
and `tokens`. Only .safetensors can hold bfloat16, which is float16 in .npz; but it cannot hold `tokens`, the text.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--batch-size", type=int, default=8, help="texts in each file of a folder (default: 8)")
    parser.add_argument("--max-length", type=int, help="tokens that longer texts are cut to (default: the tokenizer's)")
    parser.add_argument("--dtype", default="float32", help="precision of the states (default: float32)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: it is masked
    body = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval().base_model  # all but the head
    texts = args.texts.read_text("utf-8").splitlines()
    is_file = args.out.suffix in (".npz", ".safetensors")
    if is_file:
        args.batch_size = len(texts)
    else:
        args.out.mkdir(parents=True)

    for number, start in enumerate(range(0, len(texts), args.batch_size)):
        part = texts[start : start + args.batch_size]
        batch = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=args.max_length)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.inference_mode():
            hidden = body(ids, attention_mask=mask).last_hidden_state  # after the final norm
        if args.out.suffix == ".safetensors":
            save_file({"hidden_states": hidden, "input_ids": ids, "attention_mask": mask}, args.out)
            continue
        np.savez(
            args.out if is_file else args.out / f"batch-{number:05}.npz",
            hidden_states=(hidden if hidden.dtype == torch.float32 else hidden.half()).numpy(),
            input_ids=ids.numpy(),
            attention_mask=mask.numpy(),
            tokens=[tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()],
        )


if __name__ == "__main__":
    main()
