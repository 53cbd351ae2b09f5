"""Score texts with llama-cpp-python, one by one.

MODEL is a GGUF file of a causal language model. TEXTS is a file with one text on each line. Prints the loss and
perplexity of all texts, with errors that take each text as one observation. With --state, the result of each text is
kept in a file, and the same command goes on from there if it was interrupted.
"""

import argparse
from pathlib import Path

from llama_cpp import Llama

from tokenloss import evaluate
from tokenloss.sinks import TokenTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("--n-ctx", type=int, default=512, help="tokens that texts are cut to (default: 512)")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--state", metavar="FILE", help="keep the result of each text here, and go on from there")
    kept.add_argument("--per-token", metavar="OUT", help="write a row for each token to a .npy, .csv or .parquet file")
    args = parser.parse_args()

    # logits_all keeps the logits of every token: n_ctx x vocabulary x 4 bytes
    llm = Llama(args.model, n_ctx=args.n_ctx, logits_all=True, verbose=False)
    texts = args.texts.read_bytes().splitlines()

    def each_text(first):  # from text number `first` on: `evaluate` asks for what is not yet in the state
        for text in texts[first:]:
            llm.reset()
            llm.eval(llm.tokenize(text)[: args.n_ctx])
            logits, ids = llm.scores[None, : llm.n_tokens - 1], llm.input_ids[None, 1 : llm.n_tokens]
            yield logits, ids  # row j predicts token j + 1; of shape (1, tokens, V), a text is a sequence

    sinks = [TokenTable(args.per_token)] if args.per_token else []
    print(evaluate(each_text, state=args.state, sinks=sinks, top=3, progress=True).summary())


if __name__ == "__main__":
    main()
