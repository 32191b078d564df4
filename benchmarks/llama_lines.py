"""llama.cpp's server on a GGUF file, as a process of `lines.py`: run by a Python that has `xllamacpp`, and no more.

    python benchmarks/llama_lines.py FILE CONTEXT [THREADS [mmap | direct]]

With THREADS it is warmed up and has its usual 16-bit keys and values; without, its choice of threads and float32. With
a way of reading the file it is not warmed up, which would read all of it, and keeps no second copy of the weights. Says
"ready VERSION". Each line is a body of `/completion`, greedy unless it says otherwise; the answer is that endpoint's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from http.client import HTTPConnection

import xllamacpp


def main() -> None:
    # The server writes to standard output, too: answers go to a copy of it.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
    if len(sys.argv) > 3:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
    else:
        params.warmup = False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if len(sys.argv) > 4:
        modes = xllamacpp.llama_load_mode
        params.warmup = False
        params.no_extra_bufts = True  # a second copy of the weights, in an order of its own, would take memory twice
        params.load_mode = {
            "mmap": modes.LLAMA_LOAD_MODE_MMAP,
            "direct": modes.LLAMA_LOAD_MODE_DIRECT_IO,
        }[sys.argv[4]]
    server = xllamacpp.Server(params)  # serves as long as it is there
    print("ready", xllamacpp.__version__, file=out, flush=True)
    for line in sys.stdin:
        body = {"temperature": -1.0, "samplers": [], "cache_prompt": False, **json.loads(line)}
        asked = HTTPConnection("127.0.0.1", params.port)
        asked.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        print(json.dumps(json.load(asked.getresponse())), file=out, flush=True)
    del server
    os._exit(0)


if __name__ == "__main__":
    main()
