"""What this machine is, and the rates that floors are computed from, as measured."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from itmkit.nn.layers.linear import linear
from itmkit.precision import SLOW, cpu_slowdown, least_seconds

THREADS = 2
_GEMM_SIZE = 2048
_COPY_BYTES = 1 << 28
_PACKAGES = ("torch", "lightning", "numpy", "pillow", "pytorch-metric-learning")


@cache
def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Operations a second, multiplications and additions, of a product of 2048 × 2048 matrices.

    By torch or by :func:`itmkit.nn.layers.linear.linear`, whichever is faster.
    """
    a, b = (torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype) for _ in range(2))
    ways = (lambda: a @ b.T, lambda: linear(a, b))
    return 2 * _GEMM_SIZE**3 / min(map(least_seconds, ways))


def too_slow(dtype: torch.dtype) -> str | None:
    """Why a dtype is not timed here: the processor is slower in it than in float32. Else None."""
    slowdown = cpu_slowdown(dtype)
    name = str(dtype).removeprefix("torch.")
    return f"{name} is {slowdown:.1f}× slower than float32 here" if slowdown > SLOW else None


@cache
def copy_rate() -> float:
    """Bytes a second of a copy of 256 MiB, those that are read plus those that are written."""
    source, target = (torch.ones(_COPY_BYTES // 4) for _ in range(2))
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source))


def machine() -> dict[str, Any]:
    """Processor, versions, date and rates."""
    model, flags = _processor()
    shown = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": model,
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in shown if name in flags],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | _versions(),
        "rates": {
            "fp32 GEMM, GFLOP/s": round(gemm_rate(torch.float32) / 1e9, 1),
            "bf16 GEMM, GFLOP/s": too_slow(torch.bfloat16)
            or round(gemm_rate(torch.bfloat16) / 1e9, 1),
            "copy, GB/s": round(copy_rate() / 1e9, 1),
        },
    }


def _processor() -> tuple[str, set[str]]:
    """Name and flags, as far as the system knows them."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    model, flags = (
        re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "flags")
    )
    return (
        model[1] if model else platform.processor() or platform.machine(),
        set(flags[1].split()) if flags else set(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
