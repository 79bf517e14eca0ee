"""What the machine can do at best: matrix products in bf16 and fp32, memory bandwidth; prints one JSON line."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

# SmolLM2-135M: width 576, feed-forward 1536, key/value width 192, vocabulary 49152; 2048 tokens, 256 for the head
LAYERS = {
    "attention query/output": (2048, 576, 576),
    "attention key/value": (2048, 576, 192),
    "feed-forward up": (2048, 576, 1536),
    "feed-forward down": (2048, 1536, 576),
    "vocabulary head": (256, 576, 49152),
}
SQUARES = (1024, 2048, 4096)
STREAM_ELEMENTS = 64 << 20  # 256 MB an array in fp32, far beyond any cache


def best_seconds(work: Callable[[], object], *, budget: float) -> float:
    """Shortest of at least three runs, after one that is not counted, within `budget` seconds or so."""
    work()
    best, runs, started = float("inf"), 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - started < budget:
        before = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - before)
        runs += 1
    return best


def matrix_gflops(dtype: torch.dtype, *, budget: float) -> dict[str, float]:
    """GFLOP/s of squares, of the model's linear layers, and of their weight gradients."""
    found = {}
    for size in SQUARES:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty(size, size, dtype=dtype)
        seconds = best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), budget=budget)
        found[f"square {size}"] = 2 * size**3 / seconds / 1e9
    for name, (tokens, inputs, outputs) in LAYERS.items():
        x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        grad = torch.randn(tokens, outputs).to(dtype)
        flops = 2 * tokens * inputs * outputs
        forward = best_seconds(lambda x=x, w=weight: nn.functional.linear(x, w), budget=budget)
        backward = best_seconds(lambda x=x, g=grad: g.T @ x, budget=budget)
        shape = f"[{tokens},{inputs}]x[{inputs},{outputs}]"
        found[f"{name} {shape}"] = flops / forward / 1e9
        found[f"{name} {shape}, weight gradient"] = flops / backward / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def bandwidth_gb(*, budget: float) -> dict[str, float]:
    """GB/s as STREAM counts them: a copy moves two arrays, a triad three."""
    a, b, c = (torch.ones(STREAM_ELEMENTS) for _ in range(3))
    copy = best_seconds(lambda: c.copy_(a), budget=budget)
    triad = best_seconds(lambda: torch.add(a, b, alpha=3.0, out=c), budget=budget)
    size = a.numel() * a.element_size()
    return {"copy": round(2 * size / copy / 1e9, 1), "triad": round(3 * size / triad / 1e9, 1)}


def processor() -> dict[str, Any]:
    """Name and the instruction sets that matter for bf16."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "name": fields.get("model name", "unknown"),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--seconds", type=float, default=1.0, help="time for each measurement")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    matrices = {
        name: matrix_gflops(dtype, budget=args.seconds)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    record = {
        "threads": args.threads,
        "peak_gflops": {name: max(found.values()) for name, found in matrices.items()},
        "bandwidth_gb_per_second": bandwidth_gb(budget=args.seconds),
        "gflops": matrices,
        "processor": processor(),
        "torch": torch.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
