"""Store the logits of texts that are packed into rows without padding, for `tokenloss score OUT --shift`.

MODEL is any causal language model that transformers can load: its name, or its folder. TEXTS is a file with one text on
each line. If OUT ends in .npz, all texts are one row in this file; else OUT is a folder, which gets a file for each
row. Each file holds `logits` in float16, `input_ids`, `tokens`, the text of the ids, and `cu_seqlens`, where texts
begin.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def rows_of(texts: list[list[int]], most: int) -> list[list[list[int]]]:
    """Texts in their order, in rows of at most so many tokens; a longer text has a row of its own."""
    rows: list[list[list[int]]] = [[]]
    for text in texts:
        if rows[-1] and sum(map(len, rows[-1])) + len(text) > most:
            rows.append([])
        rows[-1].append(text)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--row-length", type=int, default=2048, help="most tokens in a row of a folder (default: 2048)")
    parser.add_argument("--dtype", default="float32", help="precision of the computation (default: float32)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    texts = tokenizer(args.texts.read_text("utf-8").splitlines(), truncation=True)["input_ids"]
    rows = [texts] if args.out.suffix == ".npz" else rows_of(texts, args.row_length)
    if args.out.suffix != ".npz":
        args.out.mkdir(parents=True)

    for number, row in enumerate(rows):
        ids = list(itertools.chain(*row))
        positions = list(itertools.chain(*(range(len(text)) for text in row)))  # begin at 0 with each text, by which
        with torch.inference_mode():  # the model tells texts apart; with a cache, it would not
            logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
        np.savez(
            args.out if args.out.suffix == ".npz" else args.out / f"row-{number:05}.npz",
            logits=logits.half().numpy(),
            input_ids=ids,
            cu_seqlens=np.cumsum([0, *map(len, row)]),  # text i is the tokens from cu_seqlens[i] to cu_seqlens[i + 1]
            tokens=tokenizer.convert_ids_to_tokens(ids),
        )


if __name__ == "__main__":
    main()
