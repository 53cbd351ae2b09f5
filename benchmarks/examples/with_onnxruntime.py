"""Score texts with onnxruntime, batch by batch.

FOLDER holds a causal language model as Optimum exports it: model.onnx, whose inputs are input_ids and perhaps
attention_mask, position_ids and past_key_values, and whose output is logits; and tokenizer.json. TEXTS is a file with
one text on each line. Prints the loss and perplexity of all texts, with errors that take each text as one observation.
With --state, the result of each batch is kept in a file, and the same command goes on from there if it was interrupted.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from tokenloss import evaluate, next_token
from tokenloss.sinks import TokenTable

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("--batch-size", type=int, default=8, help="texts in each batch (default: 8)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens that texts are cut to (default: 1024)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--state", metavar="FILE", help="keep the result of each batch here, and go on from there")
    kept.add_argument("--per-token", metavar="OUT", help="write a row for each token to a .npy, .csv or .parquet file")
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    tokenizer.enable_padding()  # on the right, by id 0: any will do, as it is masked
    tokenizer.enable_truncation(args.max_length)
    session = onnxruntime.InferenceSession(args.folder / "model.onnx", providers=["CPUExecutionProvider"])
    texts = args.texts.read_text("utf-8").splitlines()

    def batches(first):  # from batch number `first` on: `evaluate` asks for what is not yet in the state
        for start in range(first * args.batch_size, len(texts), args.batch_size):
            batch = tokenizer.encode_batch(texts[start : start + args.batch_size])
            ids = np.array([text.ids for text in batch])
            mask = np.array([text.attention_mask for text in batch])
            known = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(-1) - 1, 0)}
            feed = {}
            for node in session.get_inputs():
                if node.name.startswith("past_key_values"):  # (texts, heads, tokens, size): nothing came before
                    known[node.name] = np.zeros((len(ids), node.shape[1], 0, node.shape[3]), DTYPES[node.type])
                feed[node.name] = known[node.name]
            (logits,) = session.run(["logits"], feed)
            yield next_token(logits, ids, mask)

    sinks = [TokenTable(args.per_token)] if args.per_token else []
    print(evaluate(batches, state=args.state, sinks=sinks, top=3, progress=True).summary())


if __name__ == "__main__":
    main()
