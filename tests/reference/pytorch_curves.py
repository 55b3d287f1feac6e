#!/usr/bin/env python3
"""Records PyTorch's loss curves, the reference that our training is held against. Writes pytorch_curves.json beside it.

    python3 -m venv .venv && .venv/bin/pip install torch numpy
    .venv/bin/python tests/reference/pytorch_curves.py          # needs data/mnist, takes about a minute on one core

What is trained
    simple-cnn   conv 3x3 1->32 pad 1, ReLU, max pool 2x2, fc 6272->128, ReLU, fc 128->10
    mlp          fc 784->256, ReLU, fc 256->128, ReLU, fc 128->10
Loss: softmax cross-entropy, mean over the batch. Batch 64, 100 steps. Step t reads rows 64 t .. 64 t + 63 of data/mnist's
training file in file order (row index modulo the number of rows). A pixel is value / 255 in f32; no mean is subtracted.
The loss recorded for step t is the data loss alone (no l1, l2 terms), of that batch, before the step's update.

Initial weights
No weights are shipped: both sides compute them. Parameter p (0, 1, 2, ... in the order conv.weight, conv.bias, fc1.weight,
fc1.bias, ...) has at flat index i of OUR layout (below)
    s = (seed + (p << 32) + i) mod 2^64
    z = s + 0x9E3779B97F4A7C15;  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;  z = z ^ (z >> 31)          all mod 2^64: the output of splitmix64 at state s
    u = (z >> 40) / 2^24                                                  24 bits, exact in f32
    w = (2 u - 1) * bound                                                 2 u - 1 is exact in f32, one f32 multiplication
with bound = 1 / sqrt(fan_in) computed in f64 and rounded to f32. fan_in is that of the layer, for its bias too: 9 for the
convolution (3 * 3 * 1), the number of inputs for a linear layer. `init` in the output holds the first values to check by.

Our layout: images NHWC; convolution weights [KH, KW, Cin, Cout]; linear weights [in, out] (y = x W + b); flattening an image
runs over (h, w, c). PyTorch has [Cout, Cin, KH, KW], [out, in] and (c, h, w); this script permutes. So row (h * 14 + w) * 32 + c
of our fc1.weight in simple-cnn is column c * 196 + h * 14 + w of PyTorch's.

Max pool: where a window holds its maximum more than once, the gradient goes to the first one in row order. ReLU: gradient 0 at 0.

Optimizers, as PyTorch defines them (g gradient, w weight, t = 1, 2, ...; one learning rate throughout)
    sgd      v = momentum v + g (v = g at the first step);  w -= lr v
    adam     m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    adamw    w *= 1 - lr weight_decay, then as adam
    rmsprop  v = alpha v + (1 - alpha) g^2;  w -= lr g / (sqrt(v) + eps)
Where a case has l1 or l2, g is first given l2 w + l1 sign(w), sign(0) = 0, on weights and biases alike: that is the gradient of
loss + l2/2 sum(w^2) + l1 sum(|w|).

Output
`loss_f32` is PyTorch in float32 on one thread: what to be compared with. `loss_f64` is the same run in float64 from the same f32
weights and pixels: where two f32 runs part, the one nearer to it has rounded less. `max_difference` is the largest
|loss_f32 - loss_f64|, so a comparison can tell how much of a gap is rounding. `gradient_f64` (first step, data loss alone) and
`final_f64` (weights after the last step) give, per parameter in order, [sum, sum of absolute values].
"""
import gzip
import json
import pathlib
import struct

import numpy as np
import torch
import torch.nn.functional as F

SEED = 20250101
BATCH_SIZE = 64
STEPS = 100
HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "data" / "mnist"

# name, shape in our layout, fan_in
MODELS = {
    "simple-cnn": [
        ("conv.weight", (3, 3, 1, 32), 9), ("conv.bias", (32,), 9),
        ("fc1.weight", (6272, 128), 6272), ("fc1.bias", (128,), 6272),
        ("fc2.weight", (128, 10), 128), ("fc2.bias", (10,), 128),
    ],
    "mlp": [
        ("fc1.weight", (784, 256), 784), ("fc1.bias", (256,), 784),
        ("fc2.weight", (256, 128), 256), ("fc2.bias", (128,), 256),
        ("fc3.weight", (128, 10), 128), ("fc3.bias", (10,), 128),
    ],
}

CASES = [
    {"name": "simple-cnn-sgd", "model": "simple-cnn", "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}},
    {"name": "mlp-sgd", "model": "mlp", "optimizer": {"kind": "sgd", "learning_rate": 0.001, "momentum": 0.9}},
    {"name": "mlp-sgd-fast", "model": "mlp", "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}},
    {"name": "mlp-adam", "model": "mlp",
     "optimizer": {"kind": "adam", "learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}},
    {"name": "mlp-adamw", "model": "mlp",
     "optimizer": {"kind": "adamw", "learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
                   "weight_decay": 0.01}},
    {"name": "mlp-rmsprop", "model": "mlp",
     # A weight's first step is 10 learning rates long whatever its gradient's size, so one ReLU that rounding turns moves the loss:
     # at 0.001 by 3e-4, which would say nothing of the implementation.
     "optimizer": {"kind": "rmsprop", "learning_rate": 0.0001, "alpha": 0.99, "epsilon": 1e-8}},
    {"name": "mlp-sgd-l1-l2", "model": "mlp", "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
     "regularisation": {"l1": 1e-5, "l2": 1e-4}},
]


def read_idx(path):
    with gzip.open(path) as file:
        raw = file.read()
    zero, kind, rank = struct.unpack(">HBB", raw[:4])
    assert zero == 0 and kind == 8, f"{path}: expected an IDX file of bytes"
    shape = struct.unpack(f">{rank}I", raw[4:4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def splitmix64(state):
    """The output of splitmix64 for each state of a u64 array; numpy's u64 arithmetic wraps as wanted."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def initial_values(number, shape, fan_in):
    """Parameter `number` in our layout, f32."""
    count = int(np.prod(shape))
    state = np.uint64(SEED + (number << 32)) + np.arange(count, dtype=np.uint64)
    u = (splitmix64(state) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    bound = np.float32(1.0 / np.sqrt(np.float64(fan_in)))
    return ((np.float32(2) * u - np.float32(1)) * bound).reshape(shape)


def to_pytorch(name, values):
    if name == "conv.weight":
        return values.transpose(3, 2, 0, 1)
    if name == "fc1.weight" and values.shape[0] == 6272:
        values = values.reshape(14, 14, 32, 128).transpose(2, 0, 1, 3).reshape(6272, 128)
    return values.T if values.ndim == 2 else values


def forward(model, p, pixels):
    if model == "simple-cnn":
        x = F.conv2d(pixels.reshape(-1, 1, 28, 28), p["conv.weight"], p["conv.bias"], padding=1)
        x = F.max_pool2d(F.relu(x), 2).flatten(1)
        x = F.relu(F.linear(x, p["fc1.weight"], p["fc1.bias"]))
        return F.linear(x, p["fc2.weight"], p["fc2.bias"])
    x = F.relu(F.linear(pixels.flatten(1), p["fc1.weight"], p["fc1.bias"]))
    x = F.relu(F.linear(x, p["fc2.weight"], p["fc2.bias"]))
    return F.linear(x, p["fc3.weight"], p["fc3.bias"])


def make_optimizer(parameters, kind, learning_rate, momentum=0.0, beta1=0.9, beta2=0.999, alpha=0.99, epsilon=1e-8,
                   weight_decay=0.0):
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, beta2), eps=epsilon)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay)
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=learning_rate, alpha=alpha, eps=epsilon)
    raise ValueError(kind)


def run(case, images, labels, dtype):
    parameters = {
        name: torch.tensor(np.ascontiguousarray(to_pytorch(name, initial_values(number, shape, fan_in)))).to(dtype)
        .requires_grad_()
        for number, (name, shape, fan_in) in enumerate(MODELS[case["model"]])
    }
    weights = list(parameters.values())
    optimizer = make_optimizer(weights, **case["optimizer"])
    l1, l2 = (case.get("regularisation", {}).get(key, 0.0) for key in ("l1", "l2"))
    losses, first_gradient = [], None
    for step in range(STEPS):
        rows = (np.arange(BATCH_SIZE) + step * BATCH_SIZE) % len(labels)
        pixels = torch.tensor(images[rows].astype(np.float32) / np.float32(255)).to(dtype)
        target = torch.tensor(labels[rows].astype(np.int64))
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(case["model"], parameters, pixels), target)
        loss.backward()
        if first_gradient is None:
            first_gradient = sums([w.grad for w in weights])
        if l1 or l2:
            with torch.no_grad():
                for w in weights:
                    w.grad.add_(w, alpha=l2).add_(torch.sign(w), alpha=l1)
        optimizer.step()
        losses.append(loss.item())
    return losses, first_gradient, sums(weights)


def sums(tensors):
    return [[float(f"{t.double().sum():.10g}"), float(f"{t.double().abs().sum():.10g}")] for t in tensors]


def main():
    torch.set_num_threads(1)
    images, labels = read_idx(DATA / "train-images.idx3.gz"), read_idx(DATA / "train-labels.idx1.gz")
    out = {
        "torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "data": "mnist", "rows": len(labels), "seed": SEED, "batch_size": BATCH_SIZE, "steps": STEPS,
        "init": {
            model: [
                {"name": name, "shape": list(shape), "fan_in": fan_in,
                 "first": [float(str(v)) for v in initial_values(number, shape, fan_in).ravel()[:4]],
                 "sum": float(f"{initial_values(number, shape, fan_in).astype(np.float64).sum():.10g}")}
                for number, (name, shape, fan_in) in enumerate(parameters)
            ]
            for model, parameters in MODELS.items()
        },
        "cases": [],
    }
    for case in CASES:
        f32, _, _ = run(case, images, labels, torch.float32)
        f64, gradient, final = run(case, images, labels, torch.float64)
        difference = max(abs(a - b) for a, b in zip(f32, f64))
        # The shortest decimal that reads back as the same f32.
        out["cases"].append(case | {
            "max_difference": float(f"{difference:.3g}"), "gradient_f64": gradient, "final_f64": final,
            "loss_f32": [float(str(np.float32(x))) for x in f32], "loss_f64": [float(f"{x:.12g}") for x in f64],
        })
        print(f"{case['name']:16} first {f32[0]:.6f} last {f32[-1]:.6f} max |f32 - f64| {difference:.2e}")
    write(out, HERE / "pytorch_curves.json")


def write(out, path):
    """Compact JSON, one case a line, so that a change shows as the lines that changed."""
    cases = ",\n".join(json.dumps(case, separators=(",", ":")) for case in out["cases"])
    head = json.dumps({key: value for key, value in out.items() if key != "cases"}, separators=(",", ":"))
    path.write_text(f'{head[:-1]},"cases":[\n{cases}\n]}}\n')
    json.loads(path.read_text())


if __name__ == "__main__":
    main()
