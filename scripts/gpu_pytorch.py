#!/usr/bin/env python3
"""PyTorch on a GPU as the other side of a comparison: times whole steps of the models here, and single ops, on request.

    python3 scripts/gpu_pytorch.py               answer requests (below)
    python3 scripts/gpu_pytorch.py --list        what may be asked for
    python3 scripts/gpu_pytorch.py --self-test   ask for everything once in tiny sizes on the CPU, where a graph cannot be captured

Needs Python 3.9 or newer and PyTorch 2.4 or newer, nothing else; no network.

Protocol, as peer_pytorch.py's: one JSON object a line on stdin, one on stdout, until stdin closes.
    {"step": "simple-cnn", "batch_size": 64, "phase": "train", "precision": "fp32", "mode": "graph", "seconds": 0.3}
    {"op": "gemm", "precision": "bf16", "m": 4096, "n": 4096, "k": 4096, "seconds": 0.3}
    {"seconds_median": 0.000183, "samples": 41, "samples_s": [..], "peer": "pytorch", ...}
Samples are seconds of one step or of one call of the op; for a step, `images_per_s` is batch_size over their median. A request that
cannot be served is answered by {"error": "..."}. What a request needs is kept, so that the caller may interleave both sides block by block.

Time is the device's, between CUDA events. A sample of an op is a captured graph of at least 20 calls, which rotate through inputs of
together more than twice the L2 cache, so that none finds its inputs there; `captured` says whether the capture was possible. Inputs are random:
zeros would draw less power and let the clock rise. `fp32` is fp32: tf32 is off unless `tf32` is asked for.

Steps: NCHW tensors in channels_last, SGD with momentum (fused), softmax cross-entropy; bf16 and fp16 by autocast, fp16 training with a
loss scale. `mode` is eager, graph (the whole step captured once) or compile (the forward and backward pass by torch.compile, and the step captured).
Where the device reports an error, the process says so and ends: nothing more can be had from a context that failed.
"cast": true casts the weights once instead (inference only), which saves autocast's casts.
"""
import argparse
import contextlib
import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

from peer_pytorch import SimpleCnn

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("eager", "graph", "compile")
MIN_CALLS = 20
# More inputs than this in a graph would only lengthen the sample.
MAX_CALLS = 256
# A sample of a step is at least so long, or the events themselves would show in it.
SAMPLE_SECONDS = 1e-3
# The first block of a work holds more than its caches and clocks: choices of algorithms.
FIRST_WARM_UP_SECONDS, WARM_UP_SECONDS = 0.1, 0.01
MIN_SAMPLES = 5


class Clock:
    """Seconds between marks, by the device's events, or by the host on the CPU."""

    def __init__(self, device):
        self.is_cuda = device.type == "cuda"

    def mark(self):
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks):
        if not self.is_cuda:
            return [b - a for a, b in zip(marks, marks[1:])]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]

    def block(self, run, calls, seconds, warm_up):
        """Seconds of one call, once for each sample of a block: `run` makes `calls` calls."""
        end = time.perf_counter() + warm_up
        first = self.seconds([self.mark(), run() or self.mark()])[0]
        while time.perf_counter() < end:
            first = self.seconds([self.mark(), run() or self.mark()])[0]
        repeats = max(1, math.ceil(SAMPLE_SECONDS / max(first, 1e-9)))
        count = max(MIN_SAMPLES, int(seconds / max(first * repeats, 1e-9)))
        marks = [self.mark()]
        for _ in range(min(count, 2000)):
            for _ in range(repeats):
                run()
            marks.append(self.mark())
        return [s / (repeats * calls) for s in self.seconds(marks)]


def capture(run):
    """A graph of what `run` launches; it has run before on the side stream, as a capture needs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


# ---- whole steps


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 256), nn.Linear(256, 128), nn.Linear(128, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Block(nn.Module):
    """Pre-norm, as PyTorch's users write it: one product for q, k and v, its fused attention."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    WORDS, LENGTH, CLASSES = 8000, 48, 2

    def __init__(self, width=64, heads=4, hidden=128, blocks=2):
        super().__init__()
        self.words = nn.Embedding(self.WORDS, width)
        self.places = nn.Parameter(torch.randn(self.LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, self.CLASSES)

    def forward(self, x):
        x = self.words(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.classes(self.norm(x).mean(1))


MODELS = {"simple-cnn": SimpleCnn, "mlp": Mlp, "transformer": Transformer}


class Step:
    def __init__(self, request, device):
        self.phase, self.mode = request["phase"], request.get("mode", "eager")
        self.batch_size, precision = int(request["batch_size"]), request.get("precision", "fp32")
        cast = bool(request.get("cast", False))
        self.about = (request["step"], self.phase, precision, self.batch_size, cast)
        if self.phase not in ("train", "infer"):
            raise ValueError(f"unknown phase `{self.phase}`: expected `train` or `infer`")
        if self.mode not in MODES:
            raise ValueError(f"unknown mode `{self.mode}`: expected one of {', '.join(MODES)}")
        if cast and self.phase == "train":
            raise ValueError("`cast` is for inference: training keeps its weights in fp32")
        if self.mode == "graph" and device.type != "cuda":
            raise ValueError("mode `graph` needs a CUDA device")
        if self.batch_size < 1:
            raise ValueError("`batch_size` must be at least 1")
        torch.manual_seed(0)
        low = DTYPES[precision] if precision in ("bf16", "fp16") else None
        kind = MODELS[request["step"]]
        self.model = kind().to(device, memory_format=torch.channels_last)
        if kind is Transformer:
            self.rows = torch.randint(0, kind.WORDS, (self.batch_size, kind.LENGTH), device=device)
            self.labels = torch.randint(0, kind.CLASSES, (self.batch_size,), device=device)
        else:
            # With one channel both layouts have the same bytes: channels_last is said by strides.
            rows = torch.randn(self.batch_size, 1, 28, 28, device=device)
            self.rows = rows.as_strided((self.batch_size, 1, 28, 28), (784, 1, 28, 1))
            self.labels = torch.randint(0, 10, (self.batch_size,), device=device)
        if cast and low:
            self.model = self.model.to(low)
            self.rows = self.rows.to(low) if self.rows.is_floating_point() else self.rows
        # Casts kept from one step to the next must not become part of a graph.
        self.autocast = lambda: (
            torch.autocast(device.type, low, cache_enabled=self.mode == "eager") if low and not cast else contextlib.nullcontext()
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.phase == "train" and precision == "fp16")
        # Beyond a limit of variants of one function, torch.compile runs the rest eagerly without a word.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        self.forward = torch.compile(self.model) if self.mode == "compile" else self.model
        self.run = self.train if self.phase == "train" else self.infer
        if self.mode != "eager" and device.type == "cuda":
            # Compiling, too, happens in the runs before the capture.
            self.graph = capture(self.run)
            self.run = self.graph.replay

    def is_beside(self, other):
        """The same step in another mode."""
        return self.about == other.about

    def infer(self):
        with torch.inference_mode(), self.autocast():
            self.forward(self.rows)

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = F.cross_entropy(self.forward(self.rows).float(), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


# ---- ops: a row makes one set of inputs and gives the call on it, with the bytes it must move and its FLOP


def random(shape, dtype, device):
    return torch.randn(shape, device=device).to(dtype)


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def copy(r, dtype, device):
    x = random((r["elements"],), dtype, device)
    y = torch.empty_like(x)
    return lambda: y.copy_(x), size_of(x, y), 0


def read(r, dtype, device):
    x = random((r["elements"],), dtype, device)
    return lambda: x.sum(), size_of(x), r["elements"]


def gemm(r, dtype, device):
    m, n, k = r["m"], r["n"], r["k"]
    transposed_a, transposed_b = (r.get("layout", "nn") + "n")[0] == "t", r.get("layout", "nn")[1] == "t"
    a = random((k, m) if transposed_a else (m, k), dtype, device)
    b = random((n, k) if transposed_b else (k, n), dtype, device)
    c = torch.empty((m, n), dtype=dtype, device=device)
    a_seen, b_seen = a.T if transposed_a else a, b.T if transposed_b else b
    return lambda: torch.matmul(a_seen, b_seen, out=c), size_of(a, b, c), 2 * m * n * k


def gemm_int8(r, dtype, device):
    m, n, k = r["m"], r["n"], r["k"]
    a = torch.randint(-128, 128, (m, k), device=device, dtype=torch.int8)
    # Columns of B in memory, as the library wants them.
    b = torch.randint(-128, 128, (n, k), device=device, dtype=torch.int8)
    return lambda: torch._int_mm(a, b.T), size_of(a, b) + 4 * m * n, 2 * m * n * k


def softmax(r, dtype, device):
    x = random((r["rows"], r["columns"]), dtype, device)
    return lambda: F.softmax(x, 1), 2 * size_of(x), 5 * x.numel()


def layer_norm(r, dtype, device):
    x = random((r["rows"], r["columns"]), dtype, device)
    weight, bias = (random((r["columns"],), dtype, device) for _ in range(2))
    return lambda: F.layer_norm(x, (r["columns"],), weight, bias), 2 * size_of(x), 8 * x.numel()


def rms_norm(r, dtype, device):
    x, weight = random((r["rows"], r["columns"]), dtype, device), random((r["columns"],), dtype, device)
    return lambda: F.rms_norm(x, (r["columns"],), weight), 2 * size_of(x), 4 * x.numel()


def cross_entropy(r, dtype, device):
    x = random((r["rows"], r["columns"]), dtype, device).requires_grad_()
    labels = torch.randint(0, r["columns"], (r["rows"],), device=device)
    return lambda: torch.autograd.grad(F.cross_entropy(x, labels), x), 2 * size_of(x), 8 * x.numel()


def optimizer(make, state):
    def row(r, dtype, device):
        parameters = [nn.Parameter(random(tuple(shape), dtype, device)) for shape in r["shapes"]]
        for p in parameters:
            p.grad = torch.randn_like(p) * 1e-3
        # Reads weight, gradient and state, writes weight and state.
        return make(parameters, device).step, (3 + 2 * state) * size_of(*parameters), 0
    return row


adam = optimizer(lambda p, device: torch.optim.Adam(p, lr=1e-3, fused=True, capturable=device.type == "cuda"), 2)
sgd = optimizer(lambda p, _device: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True), 1)


def convolution(which):
    def row(r, dtype, device):
        b, h, w, c, f = r["batch_size"], r["height"], r["width"], r["channels"], r["filters"]
        k, stride, pad = r.get("kernel", 3), r.get("stride", 1), r.get("pad", 1)
        last = {"memory_format": torch.channels_last}
        x = random((b, c, h, w), dtype, device).contiguous(**last)
        weight = random((f, c, k, k), dtype, device).contiguous(**last)
        y = F.conv2d(x, weight, None, stride, pad)
        dy = torch.randn_like(y)
        bytes_moved, flop = size_of(x, weight, y), 2 * y.numel() * c * k * k
        if which == "forward":
            return lambda: F.conv2d(x, weight, None, stride, pad), bytes_moved, flop
        mask = [which == "dgrad", which == "wgrad", False]
        arguments = (None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)
        return lambda: torch.ops.aten.convolution_backward(dy, x, weight, *arguments), bytes_moved, flop
    return row


def embedding(r, dtype, device):
    table = random((r["rows"], r["columns"]), dtype, device)
    index = torch.randint(0, r["rows"], (r["count"],), device=device)
    return lambda: F.embedding(index, table), 2 * r["count"] * r["columns"] * table.element_size() + size_of(index), 0


def embedding_backward(r, dtype, device):
    dy = random((r["count"], r["columns"]), dtype, device)
    index = torch.randint(0, r["rows"], (r["count"],), device=device)
    written = r["rows"] * r["columns"] * dy.element_size()
    return lambda: torch.ops.aten.embedding_dense_backward(dy, index, r["rows"], -1, False), size_of(dy, index) + written, dy.numel()


def pool(r, dtype, device):
    shape = (r["batch_size"], r["channels"], r["height"], r["width"])
    x = random(shape, dtype, device).contiguous(memory_format=torch.channels_last)
    return lambda: F.max_pool2d(x, 2), size_of(x) * 5 // 4, x.numel()


ROWS = {"rows": 8, "columns": 16}
IMAGE = {"batch_size": 2, "height": 8, "width": 8, "channels": 3}
# (op, how it is made, an example of what a request must hold, precisions)
OPS = [
    ("copy", copy, {"elements": 64}, ("fp32", "bf16")),
    ("read", read, {"elements": 64}, ("fp32", "bf16")),
    ("gemm", gemm, {"m": 8, "n": 16, "k": 24}, tuple(DTYPES)),
    ("gemm-int8", gemm_int8, {"m": 32, "n": 16, "k": 16}, ("int8",)),
    ("softmax", softmax, ROWS, ("fp32", "bf16", "fp16")),
    ("layer-norm", layer_norm, ROWS, ("fp32", "bf16", "fp16")),
    ("rms-norm", rms_norm, ROWS, ("fp32", "bf16", "fp16")),
    ("cross-entropy", cross_entropy, ROWS, ("fp32", "bf16")),
    ("adam", adam, {"shapes": [[8, 4], [4]]}, ("fp32",)),
    ("sgd", sgd, {"shapes": [[8, 4], [4]]}, ("fp32",)),
    ("conv", convolution("forward"), {**IMAGE, "filters": 4}, tuple(DTYPES)),
    ("conv-dgrad", convolution("dgrad"), {**IMAGE, "filters": 4}, tuple(DTYPES)),
    ("conv-wgrad", convolution("wgrad"), {**IMAGE, "filters": 4}, tuple(DTYPES)),
    ("embedding", embedding, {**ROWS, "count": 5}, ("fp32", "bf16")),
    ("embedding-backward", embedding_backward, {**ROWS, "count": 5}, ("fp32",)),
    ("max-pool", pool, IMAGE, ("fp32", "bf16")),
]


class Calls:
    """Calls of an op on inputs in rotation, captured where the device and the op allow it."""

    def __init__(self, make, request, dtype, device):
        torch.manual_seed(0)
        first, self.bytes, self.flop = make(request, dtype, device)
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        self.sets = min(MAX_CALLS, max(1, math.ceil(2 * cache / max(self.bytes, 1)) + 1)) if cache else 2
        sets = [first] + [make(request, dtype, device)[0] for _ in range(self.sets - 1)]
        # Every set equally often.
        self.count = self.sets * max(1, math.ceil(MIN_CALLS / self.sets))

        def run():
            for k in range(self.count):
                sets[k % self.sets]()

        run()
        self.run, self.captured = run, False
        if device.type == "cuda":
            try:
                self.graph = capture(run)
                self.run, self.captured = self.graph.replay, True
            except RuntimeError:
                torch.cuda.synchronize()


class Peer:
    def __init__(self, device):
        self.device, self.clock, self.kept = device, Clock(device), {}

    def answer(self, request):
        seconds = float(request.pop("seconds", 0.3))
        precision = request.get("precision", "fp32")
        if precision not in (*DTYPES, "int8"):
            raise ValueError(f"unknown precision `{precision}`: expected one of {', '.join([*DTYPES, 'int8'])}")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # Lets cuDNN try its ways once for each shape.
        torch.backends.cudnn.benchmark = True
        key = json.dumps(request, sort_keys=True)
        work = self.kept.get(key)
        warm_up = FIRST_WARM_UP_SECONDS if work is None else WARM_UP_SECONDS
        if work is None:
            work = self.make(request, precision)
            if isinstance(work, Calls):
                # Inputs of one op at a time: they are as large as the device's cache at least.
                self.kept = {k: v for k, v in self.kept.items() if isinstance(v, Step)}
            else:
                # The modes of one step are taken in turns; a step that is over is not asked for again.
                self.kept = {k: v for k, v in self.kept.items() if isinstance(v, Step) and v.is_beside(work)}
            self.kept[key] = work
        samples = self.clock.block(work.run, getattr(work, "count", 1), seconds, warm_up)
        middle = sorted(samples)[len(samples) // 2]
        out = {"seconds_median": middle, "samples": len(samples), "samples_s": [round(s, 10) for s in samples]}
        if isinstance(work, Step):
            out["images_per_s"] = work.batch_size / middle
        else:
            out |= {"bytes": work.bytes, "flop": work.flop, "calls": work.count, "input_sets": work.sets, "captured": work.captured}
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return out | {"peer": "pytorch", "version": torch.__version__, "cuda": torch.version.cuda, "device": name} | request

    def make(self, request, precision):
        if "step" in request:
            if request["step"] not in MODELS:
                raise ValueError(f"unknown model `{request['step']}`: expected one of {', '.join(MODELS)}")
            return Step(request, self.device)
        if request["op"] not in [row[0] for row in OPS]:
            raise ValueError(f"unknown op `{request['op']}`: expected one of {', '.join(row[0] for row in OPS)}")
        make, precisions = next((row[1], row[3]) for row in OPS if row[0] == request["op"])
        if precision not in precisions:
            raise ValueError(f"`{request['op']}` is not in {precision}: expected one of {', '.join(precisions)}")
        return Calls(make, request, DTYPES.get(precision), self.device)


def reply(peer, line):
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request is a JSON object")
        return peer.answer(request)
    except KeyError as error:
        return {"error": f"the request lacks {error}"}
    # A device error, a compiler that is missing and the like are answers, not the end of the other cells.
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def self_test():
    peer, wrong, asked = Peer(torch.device("cpu")), 0, 0
    requests = [{"op": op, "precision": p, **example} for op, _, example, precisions in OPS for p in precisions]
    for model in MODELS:
        for phase in ("train", "infer"):
            # fp16 on the CPU lacks kernels that the GPU has.
            requests += [{"step": model, "phase": phase, "batch_size": 3, "precision": p} for p in ("fp32", "bf16")]
        requests.append({"step": model, "phase": "infer", "batch_size": 3, "precision": "bf16", "cast": True})
    for request in requests:
        answer = reply(peer, json.dumps({**request, "seconds": 0.001}))
        asked += 1
        if "error" in answer or not all(s > 0 for s in answer["samples_s"]):
            wrong += 1
            print(f"error: {json.dumps(request)}: {answer.get('error', 'a sample of no time')}", file=sys.stderr)
    for line in ("{", "[]", '{"op": "none"}', '{"op": "gemm", "precision": "int8"}', '{"op": "gemm", "m": 8}', "{}",
                 '{"step": "mlp", "phase": "train", "batch_size": 1, "mode": "graph"}', '{"step": "mlp", "batch_size": 1}'):
        asked += 1
        if "error" not in reply(peer, line):
            wrong += 1
            print(f"error: {line} was served", file=sys.stderr)
    print(json.dumps({"self_test": "failed" if wrong else "passed", "requests": asked, "wrong": wrong, "version": torch.__version__}))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description="Time steps and ops of PyTorch on a GPU, block by block, by JSON lines on stdin.")
    parser.add_argument("--list", action="store_true", help="print what may be asked for, a JSON object a line")
    parser.add_argument("--self-test", action="store_true", help="ask for everything once, tiny, on the CPU")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device (default 0)")
    a = parser.parse_args()
    if a.list:
        for model in MODELS:
            print(json.dumps({"step": model, "batch_size": 64, "phase": ["train", "infer"], "precision": list(DTYPES), "mode": MODES}))
        for op, _, example, precisions in OPS:
            print(json.dumps({"op": op, "precision": precisions, **example}))
        return 0
    if a.self_test:
        return self_test()
    if not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA device; --self-test needs none", file=sys.stderr)
        return 4
    device = torch.device("cuda", a.device)
    torch.cuda.set_device(device)
    peer = Peer(device)
    for line in sys.stdin:
        if line.strip():
            answer = reply(peer, line)
            print(json.dumps(answer), flush=True)
            if "CUDA error" in answer.get("error", ""):
                return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
