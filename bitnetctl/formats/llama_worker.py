"""Run a GGUF file in llama.cpp: a program, in a process of its own, since llama.cpp ends the process where it fails.

The argument is a JSON file: `model`, `context`, `vocab_size`, `rows` of token ids [P, T], `new_tokens`, `prompt` (token
ids), `ascii_token` (the token id of a whole character), `texts` and `out`, a folder. It writes `out/logits.f32`, the
log-probabilities [P, T, V] after every token of the rows, and `out/result.json`: the version, the token ids of every
text, and those of the greedy text.

llama.cpp is reached by its server, which listens on a Unix socket in `out`, or, where there are none, on 127.0.0.1.
"""

import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

# a longer path of a socket is refused by the system
_SOCKET_PATH = 100


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a server that listens on a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def main(path: str) -> None:
    """Run the job that the file describes."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    out = Path(job["out"])
    socket_path = str(out / "llama.sock")
    has_socket = hasattr(socket, "AF_UNIX") and len(socket_path) <= _SOCKET_PATH
    server = _server(job, socket_path if has_socket else None)
    if has_socket:
        connection: http.client.HTTPConnection = _UnixConnection(socket_path)
    else:
        connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    result = {
        "version": xllamacpp.__version__,
        "ids": [_asked(connection, "/tokenize", content=text, parse_special=True)["tokens"] for text in job["texts"]],
        "greedy": _asked(
            *(connection, "/completion"),
            prompt=job["prompt"],
            n_predict=job["new_tokens"],
            temperature=0,
            return_tokens=True,
        )["tokens"],
    }
    rows_PT, vocab_size = job["rows"], job["vocab_size"]
    logits_PTV = np.full((len(rows_PT), len(rows_PT[0]), vocab_size), np.nan, np.float32)
    for logits_TV, row_T in zip(logits_PTV, rows_PT, strict=True):
        for position, logits_V in enumerate(logits_TV):
            for entry in _following(server, row_T[: position + 1], vocab_size, job["ascii_token"]):
                logits_V[entry["id"]] = entry["logprob"]
    logits_PTV.tofile(out / "logits.f32")
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _server(job: dict[str, Any], socket_path: str | None) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = job["model"]
    parameters.n_ctx = job["context"]
    parameters.n_parallel = 1
    parameters.warmup = parameters.fit_params = False
    # one thread adds in one order
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # fp32 in place of the fp16 of a normal use, to compare nothing but the file
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_gpu_layers = 0
    # errors only
    parameters.verbosity = 1
    if socket_path is not None:
        parameters.hostnames = [socket_path]
        # of no meaning for a socket, but 0 would search a free one
        parameters.port = 1
    return xllamacpp.Server(parameters)


def _asked(connection: http.client.HTTPConnection, path: str, **body: Any) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    reply: dict[str, Any] = json.loads(connection.getresponse().read())
    if "error" in reply:
        raise SystemExit(f"{path}: {reply['error']}")
    return reply


def _following(server: Any, tokens_T: list[int], vocab_size: int, ascii_token: int) -> list[dict[str, Any]]:
    """Return the log-probabilities of all next tokens after a prefix."""
    reply = server.handle_completions(
        {
            "prompt": tokens_T,
            "max_tokens": 1,
            "logprobs": vocab_size,
            # none are returned with an end of text or a part of a character; they are those before the bias
            "logit_bias": [[ascii_token, 10_000]],
        }
    )
    if "choices" not in reply:
        raise SystemExit(str(reply))
    entries: list[dict[str, Any]] = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return entries


if __name__ == "__main__":
    main(sys.argv[1])
