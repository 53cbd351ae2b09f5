"""A server that answers requests as real servers answered them, by `data/clients`.

It is reached as a proxy, by the variable `http_proxy`, so that pages can name the usual addresses of servers.
"""

import contextlib
import functools
import gzip
import http.server
import json
import threading
import urllib.request
from urllib.parse import urlsplit

import numpy as np
import pytest
from clients import responses
from places import CLIENTS
from rendered import sglang

from tokenloss import log_softmax

SERVERS = {  # names of responses by the port that a page names
    8000: "vllm/",
    8001: "llama_cpp_python/completion_echo_bos",  # of a model whose tokenizer adds a BOS
    8002: "llama_cpp_python/",
    8080: "llama_server/",
    30000: "sglang/",
}


@functools.cache
def requests():
    """The requests that led to the responses: file, endpoint, status and body."""
    with gzip.open(CLIENTS / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def answer(url, body):
    """Status and text of the response to a request, which must have been recorded, or ask for classes of a sketch."""
    address = urlsplit(url)
    if "token_ids_logprob" in body:
        return 200, json.dumps(sglang_answer(body))
    for request in requests():
        named = request["file"].startswith(SERVERS[address.port])
        if named and (request["endpoint"], request["body"]) == (address.path, body):
            return request["status"], responses()[request["file"]]
    return 501, f"no response to {address.path} at port {address.port} was recorded for {json.dumps(body)}"


def sglang_answer(body):
    """The response to a request with `token_ids_logprob`, by a model whose logits are in quants/Q4g64.npz."""
    ids = body["input_ids"]
    with np.load("quants/Q4g64.npz") as file:
        (text,) = np.flatnonzero((file["input_ids"][:, : len(ids)] == ids).all(1))[:1]
        rows = log_softmax(file["logits"][text, : len(ids) - 1].astype(np.float64)).astype(np.float32)
    return sglang(ids, rows, body["top_logprobs_num"], body["token_ids_logprob"])


class _Proxy(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, text = answer(self.path, body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Print nothing."""


@contextlib.contextmanager
def serving():
    """Meanwhile, http://localhost:8000 and the other addresses answer, to programs and to this process."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        urllib.request.install_opener(None)  # one that was made before knows no proxy
        yield
        urllib.request.install_opener(None)
        server.shutdown()
