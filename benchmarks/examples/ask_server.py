"""Ask a server for the log-probabilities of prompts, and write its responses, one on each line.

PROMPTS is a text file with one prompt on each line. OUT is the file of responses as the server sends them, for
`tokenloss score OUT`.
"""

import argparse
import json
import urllib.error
import urllib.request
from pathlib import Path


def request(args: argparse.Namespace, prompt: str) -> tuple[str, dict[str, object]]:
    """The endpoint and the body of the request that makes the server return log-probabilities."""
    new, top = args.generate, args.top
    openai = {"model": args.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "logprobs": top}
    if args.server == "vllm":  # those of the prompt, too, and the ids of its tokens
        return "/v1/completions", openai | {"prompt_logprobs": top, "return_token_ids": True}
    if args.server == "echo":  # others with OpenAI's layout give the prompt back before what they generate
        return "/v1/completions", openai | {"echo": True}
    if args.server == "sglang":  # logprob_start_len: from the first token of the prompt on
        body = {"text": prompt, "sampling_params": {"max_new_tokens": new, "temperature": 0}, "return_logprob": True}
        return "/generate", body | {"logprob_start_len": 0, "top_logprobs_num": top, "return_text_in_logprobs": True}
    # llama.cpp's server, which has none of the prompt
    body = {"prompt": prompt, "n_predict": new, "temperature": 0, "n_probs": top}
    return "/completion", body | {"return_tokens": True, "cache_prompt": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="address of the server, such as http://localhost:8000")
    parser.add_argument("prompts", metavar="PROMPTS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument(
        "--server", choices=["vllm", "echo", "sglang", "llama.cpp"], default="vllm",
        help="what it is; echo: another with OpenAI's layout (default: vllm)",
    )  # fmt: skip
    parser.add_argument("--model", default="", help="name under which the server knows the model")
    parser.add_argument("--top", type=int, default=5, help="number of the likeliest tokens to ask for (default: 5)")
    parser.add_argument("--generate", type=int, default=1, help="number of tokens to generate (default: 1)")
    args = parser.parse_args()
    if not args.url.startswith(("http://", "https://")):
        parser.error(f"{args.url}: an address begins with http:// or https://")
    with args.out.open("w", encoding="utf-8") as out:
        for prompt in args.prompts.read_text("utf-8").splitlines():
            endpoint, body = request(args, prompt)
            headers = {"Content-Type": "application/json"}
            data = json.dumps(body).encode()
            asked = urllib.request.Request(args.url + endpoint, data, headers)  # noqa: S310 -- its scheme is checked above
            try:
                with urllib.request.urlopen(asked) as response:  # noqa: S310 -- its scheme is checked above
                    print(response.read().decode(), file=out)
            except urllib.error.HTTPError as error:
                parser.exit(1, f"{prompt!r}: status {error.code}, {error.read().decode()}\n")
            except urllib.error.URLError as error:
                parser.exit(1, f"{args.url}: no server answers: {error.reason}\n")


if __name__ == "__main__":
    main()
