"""Let a model choose among answers, and write what it chose for `tokenloss compare A.jsonl B.jsonl`.

MODEL is any causal language model that transformers can load: its name, or its folder. QUESTIONS has a line of JSON for
each question, `{"question": "Two and two make", "choices": ["three", "four"], "answer": 1}`: the model reads the
question, a blank and a choice. OUT gets a line for each, as lm-evaluation-harness logs samples: the log-likelihood of
each choice, whether it is greedy (each of its tokens is the likeliest), and the number of the choice by likelihood
(`chosen`) and by likelihood per letter (`chosen_norm`). How many were right is printed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenloss import next_token, sequence_losses, token_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("questions", metavar="QUESTIONS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # any will do: it is masked
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    right, samples = [], []
    for number, line in enumerate(args.questions.read_text("utf-8").splitlines()):
        doc = json.loads(line)
        question, answers = doc["question"], [f" {choice}" for choice in doc["choices"]]
        start = tokenizer(question)["input_ids"]
        batch = tokenizer([question + answer for answer in answers], return_tensors="pt", padding=True)
        if question[-1:] in ("", " ") or any(row[: len(start)] != start for row in batch["input_ids"].tolist()):
            raise SystemExit(f"error: line {number + 1}: empty, or ends in a space or within a token: {question!r}")
        if (length := batch["input_ids"].shape[1]) > context:
            raise SystemExit(f"error: line {number + 1}: {length} tokens, more than the {context} of the model")
        with torch.inference_mode():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits, targets, where = next_token(logits, batch["input_ids"], batch["attention_mask"])
        where[:, : len(start) - 1] = False  # the question does not count
        result = sequence_losses(token_scores(logits, targets, where=where))  # each row is a sequence
        chosen = [int(nll.argmin()) for nll in (result.nll, result.nll / [len(choice) for choice in doc["choices"]])]
        right.append([float(choice == doc["answer"]) for choice in chosen])
        scores = [[-nll, bool(greedy)] for nll, greedy in zip(result.nll, result.is_greedy, strict=True)]
        sample = {"doc_id": number, "doc": doc, "target": doc["answer"], "filtered_resps": scores}
        sample |= {"arguments": [[question, answer] for answer in answers], "metrics": ["acc", "acc_norm"]}
        values = zip(("chosen", "chosen_norm", "acc", "acc_norm"), chosen + right[-1], strict=True)
        samples.append(sample | dict(values))
    args.out.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    count = "1 question: no error" if len(right) == 1 else f"{len(right)} questions"
    for what, each in zip(("likelihood", "likelihood per letter"), np.transpose(right), strict=True):
        error = f" ± {each.std(ddof=1) / len(right) ** 0.5:.2f}" if len(right) > 1 else ""
        print(f"right by {what:21} {each.mean():.2f}{error} ({count})")


if __name__ == "__main__":
    main()
