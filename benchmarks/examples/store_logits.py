"""Store the logits of a padded batch of texts, for `tokenloss score OUT --shift`.

MODEL is any causal language model that transformers can load: its name, or its folder. TEXTS is a file with one text on
each line; how many of them are cut is printed. If OUT ends in .npz, all texts are one batch in this file; else OUT is a
new folder, which gets a file for each batch, so that only one is in memory. Each file holds `logits` in float16,
`input_ids`, `attention_mask` and `tokens`, the text of the ids.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--batch-size", type=int, default=8, help="texts in each file of a folder (default: 8)")
    parser.add_argument("--max-length", type=int, help="tokens that longer texts are cut to (default: the context)")
    parser.add_argument("--dtype", default="float32", help="precision of the computation (default: float32)")
    args = parser.parse_args()
    in_one_file = args.out.suffix == ".npz"
    if args.out.exists() and not in_one_file:
        parser.error(f"{args.out} exists; OUT must be a new folder, or end in .npz")

    # on the right, so that positions count from a text's first token: models with learned positions need this
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: it is masked
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    texts = args.texts.read_text("utf-8").splitlines()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    most = args.max_length or min(context, tokenizer.model_max_length)  # many tokenizers have no limit
    if cut := sum(len(ids) > most for ids in tokenizer(texts, verbose=False)["input_ids"]):
        print(f"{cut} of {len(texts)} texts cut to {most} tokens")
    if in_one_file:
        args.batch_size = len(texts)
    else:
        args.out.mkdir(parents=True)

    for number, start in enumerate(range(0, len(texts), args.batch_size)):
        part = texts[start : start + args.batch_size]
        batch = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=most)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.inference_mode():
            logits = model(ids, attention_mask=mask).logits
        np.savez(
            args.out if in_one_file else args.out / f"batch-{number:05}.npz",
            logits=logits.half().numpy(),
            input_ids=ids.numpy(),
            attention_mask=mask.numpy(),
            tokens=[tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()],
        )


if __name__ == "__main__":
    main()
