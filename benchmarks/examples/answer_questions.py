"""Let a model choose among answers, and write what it chose for `tokenloss compare A.jsonl B.jsonl`.

MODEL is any causal language model that transformers can load: its name, or its folder. QUESTIONS has a line of JSON for
each question, `{"question": "Two and two make", "choices": ["three", "four"], "answer": 1}`: the model reads the
question, a blank and a choice. OUT gets a line for each, as lm-evaluation-harness logs samples: the log-likelihood of
each choice, and whether it is greedy (each of its tokens is the likeliest). How many were right is printed.
"""

import argparse
import json
import sys
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
    right, samples = [], []
    for number, line in enumerate(args.questions.read_text("utf-8").splitlines()):
        doc = json.loads(line)
        question, answers = doc["question"], [f" {choice}" for choice in doc["choices"]]
        context = tokenizer(question)["input_ids"]
        batch = tokenizer([question + answer for answer in answers], return_tensors="pt", padding=True)
        if question[-1:] in ("", " ") or any(row[: len(context)] != context for row in batch["input_ids"].tolist()):
            sys.exit(f"error: line {number + 1}: empty, or ends in a blank or within a token: {question!r}")
        with torch.inference_mode():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits, targets, where = next_token(logits, batch["input_ids"], batch["attention_mask"])
        where[:, : len(context) - 1] = False  # the question does not count
        found = sequence_losses(token_scores(logits, targets, where=where))  # each row is a sequence
        per_letter = found.nll / [len(choice) for choice in doc["choices"]]
        right.append([float(nll.argmin() == doc["answer"]) for nll in (found.nll, per_letter)])
        chosen = [[-nll, bool(greedy)] for nll, greedy in zip(found.nll, found.is_greedy, strict=True)]
        sample = {"doc_id": number, "doc": doc, "target": doc["answer"], "filtered_resps": chosen}
        sample |= {"arguments": [[question, answer] for answer in answers], "metrics": ["acc", "acc_norm"]}
        samples.append(sample | dict(zip(sample["metrics"], right[-1], strict=True)))
    args.out.write_text("".join(json.dumps(sample) + "\n" for sample in samples), "utf-8")
    errors = np.std(right, axis=0, ddof=1) / len(right) ** 0.5
    for what, mean, error in zip(("likelihood", "likelihood per letter"), np.mean(right, axis=0), errors, strict=True):
        print(f"right by {what:21} {mean:.2f} ± {error:.2f} ({len(right)} questions)")


if __name__ == "__main__":
    main()
