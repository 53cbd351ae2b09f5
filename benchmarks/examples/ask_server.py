"""Ask a server for the log-probabilities of prompts, and write its responses, a line for each.

PROMPTS is a text of which each line is a prompt. What is written is what the server sent, for `tokenloss score OUT`.
"""

import argparse
import json
import urllib.error
import urllib.request
from pathlib import Path

ENDPOINTS = {
    "vllm": "/v1/completions",
    "echo": "/v1/completions",
    "sglang": "/generate",
    "llama.cpp": "/completion",
}


def body(options: argparse.Namespace, prompt: str) -> dict[str, object]:
    """The request that makes the server return log-probabilities."""
    new, top = options.generate, options.top
    if options.server == "vllm":  # also those of the prompt, and the ids of its tokens
        asked = {"prompt_logprobs": top, "logprobs": top, "return_token_ids": True}
        return {"model": options.model, "prompt": prompt, "max_tokens": new, "temperature": 0, **asked}
    if options.server == "echo":  # others with OpenAI's layout: the prompt comes back, and what was generated after it
        return {
            "model": options.model,
            "prompt": prompt,
            "max_tokens": new,
            "temperature": 0,
            "echo": True,
            "logprobs": top,
        }
    if options.server == "sglang":  # logprob_start_len 0: from the first token of the prompt on
        asked = {
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top,
            "return_text_in_logprobs": True,
        }
        return {"text": prompt, "sampling_params": {"max_new_tokens": new, "temperature": 0}, **asked}
    # llama.cpp has none of the prompt
    return {
        "prompt": prompt, "n_predict": new, "temperature": 0, "n_probs": top, "return_tokens": True, "cache_prompt": False
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server, such as http://localhost:8000")
    parser.add_argument("prompts", type=Path, help="a text file, of which each line is a prompt")
    parser.add_argument("out", type=Path, help="file of responses to write, such as responses.jsonl")
    parser.add_argument("--server", choices=ENDPOINTS, default="vllm", help="the layout of requests (default: vllm)")
    parser.add_argument("--model", default="", help="name under which the server knows the model")
    parser.add_argument("--top", type=int, default=5, help="number of the likeliest tokens to ask for (default: 5)")
    parser.add_argument("--generate", type=int, default=1, help="number of tokens to generate (default: 1)")
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8") as out:
        for prompt in options.prompts.read_text("utf-8").splitlines():
            data = json.dumps(body(options, prompt)).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(options.url + ENDPOINTS[options.server], data, headers)
            try:
                with urllib.request.urlopen(request) as response:
                    print(response.read().decode(), file=out)
            except urllib.error.HTTPError as error:
                parser.exit(1, f"{prompt!r}: status {error.code}, {error.read().decode()}\n")
