#!/usr/bin/env python3
"""Ours against PyTorch on the CPU, side by side: `simple-cnn`, images/s of a training step and of inference.

    cargo build --release
    python3 scripts/compare_pytorch.py --ours "target/release/advisor bench-step" \\
        --theirs ".venv/bin/python scripts/peer_pytorch.py" --json comparison.json
    python3 scripts/compare_pytorch.py --ours ".venv/bin/python scripts/peer_pytorch.py" --theirs ...   # A/A: the ratio must be 1

Needs Python 3.9 or newer, nothing else; PyTorch only for the peer (see its header). stdout gets a Markdown table, stderr the
progress, --json every block.

How it measures. Both sides are processes that time one block on request, one side at a time, while the other waits for input.
A cell is (threads, batch size, phase). Per cell and round there are two passes, forth and back, so that a drift of the machine
favours neither: ours, PyTorch channels_last, PyTorch nchw | nchw, channels_last, ours (A B B A, PyTorch once in each of its
memory layouts). Each round has new processes, because where memory comes to lie makes a process faster or slower for all its
life, and visits the cells in a new order. Of the layouts the one with the higher median over the whole run counts: a choice that
can only favour PyTorch. A pair is ours / PyTorch of one pass; the table gives the median ratio of the pairs and its bootstrap 95 %
interval (percentile; rounds are drawn anew with both their pairs, 10,000 times, fixed seed).
`--blocks` is the number of pairs per cell. 12, six rounds, is the default; the interval of fewer is too narrow, so the table warns.

Protocol of both sides, one JSON object a line: the request {"threads", "batch_size", "phase", "precision", "seconds"} (for PyTorch
also "layout") earns {"images_per_s", "samples_s": [...]} or {"error": "..."}; the latter becomes a row with that reason.

On Linux the CPU time of everything else on the machine is noted for each block. Where it exceeds 5 % of a core in a typical block,
the table says so: threads that wait for each other suffer from it much more than 5 %, and not both sides alike.

PyTorch against itself on a shared 2-core EPYC virtual machine (12 pairs of 0.35 s, 2026-11-23): the medians of the 12 cells lay
between 0.988 and 1.050, within 1.5 % of 1 but for training on two threads (both sides below their quiet speed); 10 intervals held 1,
the others were 0.998 to 0.999 and 1.019 to 1.100. So look at differences below 2 %, or 5 % on two busy cores, as none.
"""
import argparse
import collections
import json
import os
import pathlib
import platform
import random
import select
import shlex
import statistics
import subprocess
import sys
import time

OURS, PYTORCH = "ours", "PyTorch"
LAYOUTS = ("channels_last", "nchw")
CELL_KEYS = ("threads", "batch_size", "phase")
RESAMPLES = 10_000
# Six rounds: fewer clusters make the bootstrap's interval too narrow to be believed.
ENOUGH_BLOCKS = 12
BUSY_SHARE = 0.05
# A block runs its seconds, a warm-up, at worst some slow steps; the first of a cell also builds what it runs.
BLOCK_GRACE_SECONDS = 120.0


class PartnerError(Exception):
    """A side that died, hung or did not speak the protocol: the comparison cannot go on."""


class Partner:
    def __init__(self, name, command):
        self.name, self.command = name, command
        try:
            self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except (OSError, IndexError, ValueError) as error:
            raise PartnerError(f"failed to start {name} by `{command}`: {error}") from error
        self.buffer = b""

    def block(self, request):
        """The answer to one request, with the share of a core that the rest of the machine used meanwhile (None: unknown)."""
        before = cpu_seconds(self.process.pid)
        start = time.perf_counter()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise PartnerError(f"{self.name} (`{self.command}`) ended, status {self.process.wait(10)}") from error
        line = self.read_line(time.monotonic() + request["seconds"] + BLOCK_GRACE_SECONDS)
        wall = time.perf_counter() - start
        after = cpu_seconds(self.process.pid)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise PartnerError(f"{self.name} answered no JSON: {line[:200]!r}") from error
        if not isinstance(answer, dict) or not ("error" in answer or isinstance(answer.get("images_per_s"), (int, float))):
            raise PartnerError(f"{self.name} answered neither `images_per_s` nor `error`: {line[:200]!r}")
        others = None
        if before and after:
            others = max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / wall
        return answer, others

    def read_line(self, deadline):
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PartnerError(f"{self.name} (`{self.command}`) gave no answer for {BLOCK_GRACE_SECONDS:.0f} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise PartnerError(f"{self.name} (`{self.command}`) ended, status {self.process.wait(10)}")
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def close(self):
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def cpu_seconds(pid):
    """(busy seconds of the whole machine, of this process) so far, or None where /proc does not tell."""
    try:
        machine = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        own = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = machine
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) / tick, (int(own[11]) + int(own[12])) / tick


def processor_name():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def median_interval(rounds, generator):
    """Bootstrap 95 % interval of the median ratio; pairs of one round share its processes, so they are drawn together."""
    medians = sorted(
        statistics.median(ratio for pairs in generator.choices(rounds, k=len(rounds)) for ratio in pairs)
        for _ in range(RESAMPLES)
    )
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def measure(commands, cells, passes, seconds, precision, keep_samples, order):
    """Every block of every cell, in the order they ran. A cell that a side cannot do is not asked for again."""
    blocks, failed = [], {}
    rounds = (passes + 1) // 2
    first = time.perf_counter()
    for number in range(rounds):
        order.shuffle(cells)
        partners = {}
        try:
            for side, command in commands.items():
                partners[side] = Partner(side, command)
            for cell in cells:
                if cell not in failed:
                    reason = measure_cell(partners, cell, range(2 * number, min(2 * number + 2, passes)), seconds, precision,
                                          keep_samples, blocks)
                    if reason:
                        failed[cell] = reason
        finally:
            for partner in partners.values():
                partner.close()
        print(f"round {number + 1} of {rounds} done after {time.perf_counter() - first:.0f} s", file=sys.stderr)
    return blocks, failed


def measure_cell(partners, cell, passes, seconds, precision, keep_samples, blocks):
    """Adds the blocks of these passes; the reason if a side answered that it cannot do this cell."""
    sides = [(OURS, None), *((PYTORCH, layout) for layout in LAYOUTS)]
    if (passes.start // 2) % 2:
        # Else ours would be the outer one of every round.
        sides = sides[1:] + sides[:1]
    for number in passes:
        for side, layout in sides if number % 2 == 0 else sides[::-1]:
            request = {**dict(zip(CELL_KEYS, cell)), "precision": precision, "seconds": seconds}
            answer, others = partners[side].block(request | ({"layout": layout} if layout else {}))
            if "error" in answer:
                return f"{side}: {answer['error']}"
            samples = answer.get("samples_s", [])
            blocks.append({
                "cell": cell, "pass": number, "side": side, "layout": layout, "images_per_s": answer["images_per_s"],
                "samples": len(samples) or answer.get("samples"), "others_share": others,
                **({"version": answer["version"]} if "version" in answer else {}),
                **({"samples_s": samples} if keep_samples else {}),
            })
    return None


def judge(cells, blocks, failed, generator):
    """One row per cell: both speeds, PyTorch's better layout, ratio and interval."""
    by_cell = collections.defaultdict(lambda: collections.defaultdict(dict))
    others = collections.defaultdict(list)
    for block in blocks:
        by_cell[block["cell"]][block["layout"]][block["pass"]] = block["images_per_s"]
        if block["others_share"] is not None:
            others[block["cell"]].append(block["others_share"])
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell[2] != "train", cell[0], cell[1])):
        row = dict(zip(CELL_KEYS, cell))
        if cell in failed:
            rows.append(row | {"error": failed[cell]})
            continue
        speeds = by_cell[cell]
        layout = max(LAYOUTS, key=lambda layout: statistics.median(speeds[layout].values()))
        ratios = [ours / speeds[layout][number] for number, ours in sorted(speeds[None].items())]
        low, high = median_interval([ratios[i:i + 2] for i in range(0, len(ratios), 2)], generator)
        rows.append(row | {
            "ours_images_per_s": statistics.median(speeds[None].values()),
            "pytorch_images_per_s": statistics.median(speeds[layout].values()), "pytorch_layout": layout,
            "pytorch_images_per_s_by_layout": {name: statistics.median(speeds[name].values()) for name in LAYOUTS},
            "ratio": statistics.median(ratios), "ratio_ci_low": low, "ratio_ci_high": high, "pairs": len(ratios),
            "ratios": ratios, "others_share": statistics.median(others[cell]) if others[cell] else None,
        })
    return rows


def markdown(result):
    machine = result["machine"]
    lines = [
        f"`simple-cnn`, {result['precision']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}; "
        f"PyTorch {result['pytorch_version']}; {result['blocks']} pairs of blocks of {result['seconds']:g} s per cell, interleaved; "
        f"{result['date']}.", "",
        "| phase | threads | batch | ours, images/s | PyTorch, images/s (layout) | ours / PyTorch | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    busy = False
    for row in result["rows"]:
        start = f"| {row['phase']} | {row['threads']} | {row['batch_size']} |"
        if "error" in row:
            lines.append(f"{start} {row['error'].replace('|', '/')} | | | |")
            continue
        disturbed = (row["others_share"] or 0.0) > BUSY_SHARE
        busy |= disturbed
        lines.append(
            f"{start} {row['ours_images_per_s']:,.0f} | {row['pytorch_images_per_s']:,.0f} ({row['pytorch_layout']}) | "
            f"{row['ratio']:.3f}{' *' if disturbed else ''} | {row['ratio_ci_low']:.3f} to {row['ratio_ci_high']:.3f} |"
        )
    if busy:
        lines += ["", f"\\* The rest of the machine used more than {BUSY_SHARE:.0%} of a core in the median block: measure again on a quiet one."]
    if result["blocks"] < ENOUGH_BLOCKS:
        lines += ["", f"{result['blocks']} pairs make the interval too narrow: use {ENOUGH_BLOCKS} or more for a claim."]
    return "\n".join(lines)


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Compare our speed with PyTorch's, block by block.")
    parser.add_argument("--ours", required=True, metavar="CMD", help="command that speaks the protocol (see the file's header)")
    parser.add_argument("--theirs", metavar="CMD", default=f"{shlex.quote(sys.executable)} {shlex.quote(str(here / 'peer_pytorch.py'))}",
                        help="PyTorch's side (default: peer_pytorch.py with this Python)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--phase", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--blocks", type=int, default=ENOUGH_BLOCKS, help=f"pairs of blocks per cell (default {ENOUGH_BLOCKS})")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block (default 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="order of the cells, and bootstrap (default 0)")
    parser.add_argument("--json", metavar="PATH", help="write every block and the table's numbers here")
    parser.add_argument("--keep-samples", action="store_true", help="also the seconds of each step in --json (large)")
    a = parser.parse_args()
    if a.blocks < 1 or a.seconds <= 0:
        parser.error("--blocks and --seconds must be positive")

    cells = [(threads, batch, phase) for threads in a.threads for batch in a.batch for phase in a.phase]
    try:
        blocks, failed = measure({OURS: a.ours, PYTORCH: a.theirs}, cells, a.blocks, a.seconds, a.precision, a.keep_samples,
                                 random.Random(a.seed))
    except PartnerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4

    rows = judge(cells, blocks, failed, random.Random(a.seed))
    result = {
        "schema": 1, "date": time.strftime("%Y-%m-%d"), "ours": a.ours, "theirs": a.theirs, "precision": a.precision,
        "pytorch_version": next((b["version"] for b in blocks if b["side"] == PYTORCH and "version" in b), "unknown"),
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"},
        "blocks": a.blocks, "seconds": a.seconds, "seed": a.seed, "rows": rows,
        "raw": [b | {"cell": dict(zip(CELL_KEYS, b["cell"]))} for b in blocks],
    }
    print(markdown(result))
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(result, separators=(",", ":")) + "\n")
    return 5 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
