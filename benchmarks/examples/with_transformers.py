"""Score texts with a model of transformers, batch by batch.

MODEL is any causal language model that transformers can load: its name, or its folder. TEXTS is a file with one text on
each line. Prints the loss and perplexity of all texts, with errors that take each text as one observation. With
--state, the result of each batch is kept in a file, and the same command goes on from there if it was interrupted.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenloss import evaluate, next_token
from tokenloss.sinks import TokenTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("--batch-size", type=int, default=8, help="texts in each batch (default: 8)")
    parser.add_argument("--dtype", default="float32", help="precision of the computation (default: float32)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--state", metavar="FILE", help="keep the result of each batch here, and go on from there")
    kept.add_argument("--per-token", metavar="OUT", help="write a row for each token to a .npy, .csv or .parquet file")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: it is masked
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    texts = args.texts.read_text("utf-8").splitlines()

    def batches(first):  # from batch number `first` on: `evaluate` asks for what is not yet in the state
        for start in range(first * args.batch_size, len(texts), args.batch_size):
            part = texts[start : start + args.batch_size]
            batch = tokenizer(part, return_tensors="pt", padding=True, truncation=True)
            with torch.inference_mode():
                logits = model(**batch).logits
            yield next_token(logits, batch["input_ids"], batch["attention_mask"])

    sinks = [TokenTable(args.per_token)] if args.per_token else []
    print(evaluate(batches, state=args.state, sinks=sinks, top=3, progress=True).summary())


if __name__ == "__main__":
    main()
