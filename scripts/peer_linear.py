#!/usr/bin/env python3
"""PyTorch as the other side of a comparison of linear layers: times one layer on the CPU, block by block, on request.

Needs Python 3.9 or newer and PyTorch (see scripts/peer_pytorch.py). Started by `cargo bench --bench linear -- --peer "..."`.

Protocol: one JSON object a line on stdin, one on stdout, until stdin closes.
    {"rows": 64, "inputs": 784, "outputs": 256, "format": "int8", "threads": 2, "seconds": 0.1}
    {"seconds": 0.000123, "samples": 812, "engine": "x86"}
`format` is fp32, int8 (static: fp32 in, quantised per tensor, product with ReLU, back to fp32) or int8-dynamic (PyTorch's own dynamic
path). Weights are per output channel. `seconds` is the median of the block's steps. Of the quantised engines of the build, the fastest
of a short trial is taken for each layer and format: a choice that can only favour PyTorch.
"""
import json
import os
import statistics
import sys
import time
import warnings

# As scripts/peer_pytorch.py: freed memory is kept, or large tensors are faulted in again on every step. Read when the process starts.
KEEP_MEMORY = ("glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592:"
               "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1")
if os.environ.get("GLIBC_TUNABLES") != KEEP_MEMORY:
    os.environ["GLIBC_TUNABLES"] = KEEP_MEMORY
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch  # noqa: E402  (after the process has started anew)
import torch.nn.functional as F  # noqa: E402

warnings.filterwarnings("ignore")
ENGINES = [name for name in torch.backends.quantized.supported_engines if name in ("x86", "onednn", "fbgemm")]
WARM_UP = 3
MIN_STEPS = 5
TRIAL_SECONDS = 0.05


def make(request, engine):
    torch.manual_seed(0)
    rows, inputs, outputs = request["rows"], request["inputs"], request["outputs"]
    x, w, bias = torch.rand(rows, inputs) * 2 - 1, torch.rand(outputs, inputs) * 2 - 1, torch.rand(outputs)
    if request["format"] == "fp32":
        return lambda: F.relu_(F.linear(x, w, bias))
    torch.backends.quantized.engine = engine
    zero_points = torch.zeros(outputs, dtype=torch.long)
    packed = torch.ops.quantized.linear_prepack(
        torch.quantize_per_channel(w, w.abs().amax(1) / 127, zero_points, 0, torch.qint8), bias)
    if request["format"] == "int8-dynamic":
        return lambda: torch.ops.quantized.linear_relu_dynamic(x, packed, True)

    def static():
        quantised = torch.quantize_per_tensor(x, 1 / 127, 128, torch.quint8)
        return torch.ops.quantized.linear_relu(quantised, packed, 0.1, 0).dequantize()

    return static


def block(step, seconds):
    with torch.inference_mode():
        for _ in range(WARM_UP):
            step()
        samples, start = [], time.perf_counter()
        now = start
        while len(samples) < MIN_STEPS or now - start < seconds:
            begin = time.perf_counter()
            step()
            now = time.perf_counter()
            samples.append(now - begin)
    return statistics.median(samples), len(samples)


def main():
    layers = {}
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        key = tuple(request[name] for name in ("rows", "inputs", "outputs", "format", "threads"))
        if key not in layers:
            engines = ENGINES if request["format"] != "fp32" else [""]
            made = [(block(step, TRIAL_SECONDS)[0], engine, step) for engine in engines for step in [make(request, engine)]]
            layers[key] = min(made, key=lambda one: one[0])
        _, engine, step = layers[key]
        if engine:
            torch.backends.quantized.engine = engine
        seconds, samples = block(step, request["seconds"])
        print(json.dumps({"seconds": seconds, "samples": samples, "engine": engine}), flush=True)


if __name__ == "__main__":
    main()
