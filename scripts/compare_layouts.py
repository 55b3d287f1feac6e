#!/usr/bin/env python3
"""Times training steps of simple-cnn in layouts against one rank of one thread, in interleaved blocks on this machine.

    python3 scripts/compare_layouts.py --ours "target/release/advisor bench-step" dp=2 zero=2

Each round times the one rank, the layouts, the layouts in reverse and the one rank again (ABBA), so that a drift of the machine falls on all
alike. Every rank has one thread. The ratio is the median over rounds, the interval a bootstrap over them.
"""

import argparse
import json
import random
import shlex
import statistics
import subprocess


def ranks(layout):
    """Ranks of a layout such as `dp=2,tp=2`."""
    count = 1
    for part in layout.split(","):
        count *= int(part.partition("=")[2] or 1)
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="+")
    parser.add_argument("--ours", default="target/release/advisor bench-step")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one block")
    args = parser.parse_args()
    worker = subprocess.Popen(shlex.split(args.ours), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(layout):
        request = {"threads": ranks(layout), "batch_size": args.batch, "phase": "train", "precision": "fp32"}
        worker.stdin.write(json.dumps({**request, "layout": layout, "seconds": args.seconds}) + "\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
        if "error" in answer:
            raise SystemExit(f"{layout}: {answer['error']}")
        return answer["images_per_s"]

    order = ["single", *args.layouts]
    for layout in order:
        rate(layout)
    rounds = []
    for _ in range(args.rounds):
        random.shuffle(order)
        seen = {layout: [] for layout in order}
        for layout in order + order[::-1]:
            seen[layout].append(rate(layout))
        rounds.append({layout: statistics.mean(rates) for layout, rates in seen.items()})
    worker.stdin.close()
    worker.wait()
    draw = random.Random(1)
    for layout in ["single", *args.layouts]:
        ratios = [one[layout] / one["single"] for one in rounds]
        resampled = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
        rates = statistics.median(one[layout] for one in rounds)
        print(f"{layout:12} {rates:9.0f} images/s, {statistics.median(ratios):.3f} times one rank"
              f" (95 %: {resampled[50]:.3f} to {resampled[1949]:.3f})")


if __name__ == "__main__":
    main()
