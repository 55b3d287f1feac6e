#!/usr/bin/env python3
"""Compiles kernels/*.cu ahead of time: cubins for each architecture and PTX for later ones, with a manifest.

    python3 scripts/build_kernels.py           build what is stale into kernels/built/
    python3 scripts/build_kernels.py --check   build everything anew and compare with what is committed

Needs Python 3.11 with venv and pip, and x86-64 Linux; the pinned compiler is installed below target/kernel-tools. No GPU, no driver.
Gates: no spilled register, no stack, no note of the assembler that undoes what a kernel asks for (C75xx), budgets of kernels/budget.toml.
Exit code 1 when a gate or the comparison fails, 2 when the tools cannot be had.
"""

import argparse
import ctypes
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
BUILT = KERNELS / "built"
TOOLS = ROOT / "target" / "kernel-tools"
# The compiler: 12.9 still assembles for every architecture from sm_80 on, and its cubins load with drivers from 525 on.
PACKAGES = ["nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-cuobjdump==13.5.37", "nvidia-cuda-nvdisasm==13.5.37"]
OPTIONS = ["--std=c++17", "--restrict", "--ptxas-options=-v"]
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90a"]
# The oldest PTX that holds what the kernels use: driver 525 takes it.
PTX_ARCHITECTURE, PTX_VERSION = "compute_80", "8.0"
HEADERS = ["common.cuh", "hopper.cuh", "hopper_narrow.cuh"]


def locked_architectures(source: str) -> list[str]:
    """A line `// Architectures: sm_90a` in a kernel file keeps it from being built for others."""
    found = re.search(r"^// Architectures: (.+)$", source, re.M)
    return found.group(1).split() if found else ARCHITECTURES


def tools() -> tuple[ctypes.CDLL, dict]:
    stamp = TOOLS / "packages.txt"
    python = TOOLS / "bin" / "python"
    if not stamp.exists() or stamp.read_text().split() != PACKAGES:
        try:
            subprocess.run([sys.executable, "-m", "venv", str(TOOLS)], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"error: the compiler packages could not be installed: {error}", file=sys.stderr)
            sys.exit(2)
        stamp.write_text("\n".join(PACKAGES) + "\n")
    packages = next((TOOLS / "lib").glob("python3*")) / "site-packages" / "nvidia"
    library = next(packages.glob("**/libnvrtc.so.12"))
    nvrtc = ctypes.CDLL(str(library))
    binaries = str(next(packages.glob("**/bin/cuobjdump")).parent)
    nvdisasm = str(next(packages.glob("**/bin/nvdisasm")).parent)
    environment = dict(os.environ, PATH=f"{binaries}:{nvdisasm}:{os.environ['PATH']}")
    return nvrtc, environment


def compiled(nvrtc: ctypes.CDLL, name: str, source: str, headers: dict[str, str], architecture: str) -> tuple[bytes, str]:
    """The image and the log."""
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(headers))(*[h.encode() for h in headers])
    texts = (ctypes.c_char_p * len(headers))(*[t.encode() for t in headers.values()])
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names)
    assert code == 0, f"nvrtcCreateProgram: {code}"
    options = [f"--gpu-architecture={architecture}", *OPTIONS]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))

    def text(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    log = text("ProgramLog").rstrip(b"\0").decode()
    if code != 0:
        print(f"error: kernels/{name} for {architecture}:\n{log}", file=sys.stderr)
        sys.exit(1)
    image = text("CUBIN") if architecture.startswith("sm_") else text("PTX").rstrip(b"\0")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if not architecture.startswith("sm_"):
        image = re.sub(rb"^\.version \d+\.\d+$", f".version {PTX_VERSION}".encode(), image, count=1, flags=re.M)
        # Comments carry the compiler's build number and nothing else.
        image = re.sub(rb"^//.*\n", b"", image, flags=re.M)
    return image, log


def resources(log: str) -> dict[str, dict]:
    """Registers, spilled bytes, stack and static shared memory of each kernel, from the assembler's report."""
    out: dict[str, dict] = {}
    kernel = None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.group(1)
            out[kernel] = {"registers": 0, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0}
        if kernel is None:
            continue
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            out[kernel]["stack_bytes"] = int(found.group(1))
            out[kernel]["spill_bytes"] = int(found.group(2)) + int(found.group(3))
        if found := re.search(r"Used (\d+) registers", line):
            out[kernel]["registers"] = int(found.group(1))
        if found := re.search(r"(\d+) bytes smem", line):
            out[kernel]["shared_bytes"] = int(found.group(1))
    return out


def instructions(image: bytes, environment: dict) -> dict[str, dict[str, int]]:
    """How often each machine instruction, with its modifiers, stands in each kernel."""
    path = TOOLS / "one.cubin"
    path.write_bytes(image)
    text = subprocess.run(["cuobjdump", "-sass", str(path)], check=True, capture_output=True, text=True, env=environment).stdout
    out: dict[str, dict[str, int]] = {}
    kernel: dict[str, int] = {}
    for line in text.splitlines():
        if found := re.search(r"Function : (\w+)", line):
            kernel = out.setdefault(found.group(1), {})
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            kernel[found.group(1)] = kernel.get(found.group(1), 0) + 1
    return out


def gates(stem: str, architecture: str, found: dict[str, dict], log: str, budget: dict) -> list[str]:
    wrong = [f"{stem} {architecture}: {line.strip()}" for line in log.splitlines() if re.search(r"\bC75\d\d\b", line)]
    for kernel, used in found.items():
        rows = [row for row in budget.get("kernel", []) if re.fullmatch(row["name"], kernel)]
        stack = max((row.get("stack_bytes", 0) for row in rows), default=0)
        if not rows:
            wrong.append(f"{kernel}: kernels/budget.toml has no budget for it")
        if used["spill_bytes"] or used["stack_bytes"] > stack:
            wrong.append(f"{kernel} {architecture}: {used['spill_bytes']} bytes spilled, {used['stack_bytes']} bytes of stack")
        for row in rows:
            row["used"] = True
            if used["registers"] > row.get("registers", 255):
                wrong.append(f"{kernel} {architecture}: {used['registers']} registers, budget {row['registers']}")
            if used["shared_bytes"] > row.get("shared_bytes", 49152):
                wrong.append(f"{kernel} {architecture}: {used['shared_bytes']} bytes shared, budget {row['shared_bytes']}")
    return wrong


def expected_instructions(stem: str, architecture: str, counted: dict[str, dict[str, int]], budget: dict) -> list[str]:
    wrong = []
    for row in budget.get("instruction", []):
        if not re.fullmatch(row["file"], stem) or architecture not in row.get("architectures", ARCHITECTURES):
            continue
        for kernel, counts in counted.items():
            if not re.fullmatch(row["name"], kernel):
                continue
            row["used"] = True
            least = {**{opcode: 1 for opcode in row.get("has", [])}, **row.get("least", {})}
            for opcode, count in least.items():
                there = sum(n for name, n in counts.items() if name.startswith(opcode))
                if there < count:
                    wrong.append(f"{kernel} {architecture}: {there} times {opcode} among its instructions, not {count}")
            for opcode in row.get("lacks", []):
                if any(name.startswith(opcode) for name in counts):
                    wrong.append(f"{kernel} {architecture}: it has {opcode}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="build anew and compare with what is committed")
    check = parser.parse_args().check
    headers = {h: (KERNELS / h).read_text() for h in HEADERS if (KERNELS / h).exists()}
    budget = tomllib.loads((KERNELS / "budget.toml").read_text())
    manifest_path = BUILT / "manifest.json"
    committed = json.loads(manifest_path.read_text()) if manifest_path.exists() else {"files": {}}
    setup = {"compiler": PACKAGES[0], "options": OPTIONS, "ptx": f"{PTX_ARCHITECTURE}, version {PTX_VERSION}"}
    manifest = {**setup, "files": {}}
    same_setup = all(committed.get(key) == value for key, value in setup.items())
    wrong: list[str] = []
    BUILT.mkdir(exist_ok=True)
    stale = []
    for path in sorted(KERNELS.glob("*.cu")):
        source, stem = path.read_text(), path.stem
        used = [h for h in headers if f'"{h}"' in source or h == "common.cuh"]
        hashed = hashlib.sha256("".join([source, *(headers[h] for h in used)]).encode()).hexdigest()
        before = committed["files"].get(stem)
        if not check and same_setup and before and before["source_sha256"] == hashed:
            manifest["files"][stem] = before
            continue
        manifest["files"][stem] = {"source_sha256": hashed, "headers": used, "images": {}}
        targets = locked_architectures(source)
        stale += [(path, source, target) for target in ([*targets, PTX_ARCHITECTURE] if targets == ARCHITECTURES else targets)]
    if stale:
        nvrtc, environment = tools()
        # The compiler runs outside of Python's lock: one thread a core.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda one: compiled(nvrtc, one[0].name, one[1], headers, one[2]), stale))
    for (path, source, architecture), (image, log) in zip(stale, results if stale else []):
        stem, is_ptx = path.stem, architecture == PTX_ARCHITECTURE
        found = {} if is_ptx else resources(log)
        wrong += gates(stem, architecture, found, log, budget)
        wrong += [] if is_ptx else expected_instructions(stem, architecture, instructions(image, environment), budget)
        name = f"{stem}.{architecture}.{'ptx' if is_ptx else 'cubin'}.gz"
        manifest["files"][stem]["images"][architecture] = {
            "file": name,
            "bytes": len(image),
            "sha256": hashlib.sha256(image).hexdigest(),
            "kernels": dict(sorted(found.items())),
        }
        if check:
            stored = BUILT / name
            if not stored.exists() or gzip.decompress(stored.read_bytes()) != image:
                wrong.append(f"kernels/built/{name} is not what the sources give")
        else:
            (BUILT / name).write_bytes(gzip.compress(image, 9, mtime=0))
        print(f"{name}: {len(image)} bytes")
    if check:
        for table in ("kernel", "instruction"):
            unused = [row["name"] for row in budget.get(table, []) if not row.get("used")]
            wrong += [f"kernels/budget.toml: no kernel is called `{name}`, which a row of `{table}` is for" for name in unused]
    if check and manifest != committed:
        wrong.append("kernels/built/manifest.json is not what the sources give")
    if not check:
        manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")
        kept = {image["file"] for entry in manifest["files"].values() for image in entry["images"].values()} | {"manifest.json"}
        for path in BUILT.iterdir():
            if path.name not in kept:
                path.unlink()
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong and check:
        print("help: run `python3 scripts/build_kernels.py` and commit kernels/built", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
