#!/usr/bin/env python3
"""PyTorch as the other side of a speed comparison: times `simple-cnn` on the CPU, block by block, on request.

Needs Python 3.9 or newer and PyTorch. On a machine without a GPU any build will do; the CPU one is the smallest:
    python3 -m venv .venv && .venv/bin/pip install torch numpy

Protocol: one JSON object a line on stdin, one JSON object a line on stdout, until stdin closes.
    {"threads": 1, "batch_size": 64, "phase": "train", "precision": "fp32", "layout": "channels_last", "seconds": 0.5}
    {"images_per_s": 3905.1, "samples": 31, "samples_s": [0.01638, ...], "peer": "pytorch", "version": "2.15.0", ...}
`phase` is train or infer; `precision` is fp32 (default) or bf16 (autocast); `layout` is channels_last, nchw, or left out:
then the faster of the two is found once per cell and kept. `samples_s` are the seconds of each step, `images_per_s` is
batch_size over their median. A request that cannot be served is answered by {"error": "..."}.

The model, the same as `simple-cnn` here: conv 3x3 1->32 pad 1, ReLU, max pool 2x2, fc 6272->128, ReLU, fc 128->10,
softmax cross-entropy, SGD with momentum. A train step is zero_grad, forward, loss, backward, update; an infer step is the
forward pass in inference mode. Inputs are random normal: the speed of these kernels does not depend on the values.
PyTorch's two memory layouts differ by factors of two and more (its NCHW max pool is slow), in either direction by cell:
a fair comparison takes the better one of each cell, as `compare_pytorch.py` does.

Memory: glibc's default allocator hands every large tensor back to the system and faults it in again on the next step, and does so
or not depending on what ran before. At batch 256 that made PyTorch up to three times slower (6,400 against 18,400 images/s
of inference on one core of a 2-core EPYC virtual machine). PyTorch's tuning guide advises another allocator; keeping
freed memory and asking for huge pages gave the same speed as jemalloc there and needs nothing installed, so it is the
default. `--allocator default` shows PyTorch as it comes.
"""
import argparse
import json
import os
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYOUTS = ("channels_last", "nchw")
# A block starts by running until caches, thread pool and oneDNN's primitive cache are warm; a cell's first block takes
# longer because it also builds its primitives.
WARM_UP_SECONDS = 0.1
FIRST_WARM_UP_SECONDS = 0.3
# The trial that picks a layout when the request names none.
TRIAL_SECONDS = 0.2
# A median of fewer steps says little, even where that makes a block longer than asked for.
MIN_STEPS = 5
# Read by glibc when the process starts, so the script starts itself anew with them; without glibc they do nothing.
KEEP_MEMORY = ("glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592:"
               "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1")


class SimpleCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 14 * 14, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Cell:
    """One model with its inputs, kept between blocks."""

    def __init__(self, batch_size, phase, precision, layout):
        torch.manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.phase, self.precision = phase, precision
        self.model = SimpleCnn().to(memory_format=memory_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(batch_size, 1, 28, 28)
        if layout == "channels_last":
            # With one channel both layouts have the same bytes, so PyTorch would not see the difference: say it by strides.
            images = images.as_strided(images.shape, (784, 1, 28, 1))
        self.images = images
        self.labels = torch.randint(0, 10, (batch_size,))
        self.is_warm = False

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def step(self):
        if self.phase == "infer":
            with torch.inference_mode(), self.autocast():
                self.model(self.images)
            return
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()

    def run_block(self, seconds):
        """Seconds of each step of a block of about `seconds`, warm-up left out."""
        end = time.perf_counter() + (WARM_UP_SECONDS if self.is_warm else FIRST_WARM_UP_SECONDS)
        self.step()
        while time.perf_counter() < end:
            self.step()
        self.is_warm = True
        samples = []
        start = now = time.perf_counter()
        while len(samples) < MIN_STEPS or now - start < seconds:
            begin = time.perf_counter()
            self.step()
            now = time.perf_counter()
            samples.append(now - begin)
        return samples


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


class Peer:
    def __init__(self, allocator):
        self.allocator = allocator
        self.cells = {}
        self.best_layout = {}

    def cell(self, threads, batch_size, phase, precision, layout):
        # The thread count is part of the key: oneDNN chooses its kernels by it.
        key = (threads, batch_size, phase, precision, layout)
        if key not in self.cells:
            self.cells[key] = Cell(batch_size, phase, precision, layout)
        return self.cells[key]

    def pick_layout(self, *cell_key):
        if cell_key not in self.best_layout:
            # Twice each, A B B A, so that a drift of the machine favours neither.
            medians = {layout: [] for layout in LAYOUTS}
            for layout in LAYOUTS + LAYOUTS[::-1]:
                medians[layout].append(median(self.cell(*cell_key, layout).run_block(TRIAL_SECONDS)))
            self.best_layout[cell_key] = min(LAYOUTS, key=lambda layout: min(medians[layout]))
        return self.best_layout[cell_key]

    def answer(self, request):
        threads, batch_size = int(request["threads"]), int(request["batch_size"])
        phase, precision = request["phase"], request.get("precision", "fp32")
        layout, seconds = request.get("layout"), float(request.get("seconds", 0.5))
        if threads < 1 or batch_size < 1:
            raise ValueError("`threads` and `batch_size` must be at least 1")
        if phase not in ("train", "infer"):
            raise ValueError(f"unknown phase `{phase}`: expected `train` or `infer`")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision `{precision}`: expected `fp32` or `bf16`")
        if layout not in (None, *LAYOUTS):
            raise ValueError(f"unknown layout `{layout}`: expected one of {', '.join(LAYOUTS)}")
        torch.set_num_threads(threads)
        if layout is None:
            layout = self.pick_layout(threads, batch_size, phase, precision)
        samples = self.cell(threads, batch_size, phase, precision, layout).run_block(seconds)
        return {
            "images_per_s": batch_size / median(samples), "samples": len(samples),
            "samples_s": [round(s, 9) for s in samples], "peer": "pytorch", "version": torch.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": threads, "batch_size": batch_size,
            "phase": phase, "precision": precision, "layout": layout, "allocator": self.allocator,
        }


def main():
    parser = argparse.ArgumentParser(description="Time simple-cnn in PyTorch, block by block, by JSON lines on stdin.")
    parser.add_argument("--allocator", choices=["keep", "default"], default="keep",
                        help="keep freed memory (default), or glibc's own ways")
    allocator = parser.parse_args().allocator
    if allocator == "keep" and os.environ.get("GLIBC_TUNABLES") != KEEP_MEMORY:
        os.environ["GLIBC_TUNABLES"] = KEEP_MEMORY
        os.execv(sys.executable, [sys.executable, *sys.argv])
    peer = Peer(allocator)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            reply = peer.answer(json.loads(line))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            missing = f"the request lacks {error}" if isinstance(error, KeyError) else str(error)
            reply = {"error": missing}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
