"""Ask vLLM, without a server, for the log-probabilities of texts, for `tokenloss score OUT`.

MODEL is any causal language model that vLLM can load: its name, or its folder. TEXTS is a file with one text on each
line. Writes a line of JSON to OUT for each text, as vLLM's server answers: the log-probability and the rank of each
token, and the likeliest tokens in its place. The same command goes on after the last text in OUT if it was interrupted.
"""

import argparse
import json
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXTS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--top-k", type=int, default=5, help="likeliest tokens of each position (default: 5)")
    parser.add_argument("--batch-size", type=int, default=256, help="texts that are asked at a time (default: 256)")
    parser.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help="""of vllm.LLM, as '{"max_model_len": 4096}'"""
    )
    args = parser.parse_args()

    llm = LLM(args.model, **args.options)
    texts = args.texts.read_text("utf-8").splitlines()
    request = SamplingParams(prompt_logprobs=args.top_k, max_tokens=1)

    with args.out.open("a+b") as out:
        out.seek(0)
        there = out.read()
        out.truncate(there.rfind(b"\n") + 1)  # without a line that was cut short
        for start in range(there.count(b"\n"), len(texts), args.batch_size):
            outputs = llm.generate(texts[start : start + args.batch_size], request)
            lines = [json.dumps(as_response(number, output)) + "\n" for number, output in enumerate(outputs, start)]
            out.write("".join(lines).encode())
            out.flush()


def as_response(number, output):
    """A line of a batch of responses, as vLLM's server writes it."""
    prompt_logprobs = [
        position and {token: vars(logprob) for token, logprob in position.items()}  # None for the first token
        for position in output.prompt_logprobs
    ]
    ids = output.prompt_token_ids
    choice = {"index": 0, "text": "", "prompt_logprobs": prompt_logprobs, "prompt_token_ids": ids}  # text: generated
    body = {"object": "text_completion", "choices": [choice]}
    return {"custom_id": f"text-{number}", "response": {"status_code": 200, "body": body}, "error": None}


if __name__ == "__main__":
    main()
