"""Peak memory of losses of vectors on a large batch; Linux only.

``python -m benchmarks.losses_memory NAME [ROWS]`` measures one of ``LARGE`` in this process, on
16,384 pairs of 512 numbers unless told otherwise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    SigLIPLoss,
    TripletLoss,
    VectorLoss,
)

#: Losses of vectors, for large batches.
LARGE: dict[str, Callable[[], torch.nn.Module]] = {
    "triplet": lambda: VectorLoss(TripletLoss()),
    "triplet_all": lambda: VectorLoss(TripletLoss(negatives="all")),
    "group_triplet": lambda: VectorLoss(GroupTripletLoss()),
    "adaptive_margin": lambda: VectorLoss(AdaptiveMarginTripletLoss()),
    "hinge_cross_entropy": lambda: VectorLoss(HingeCrossEntropyLoss()),
    "info_nce": lambda: VectorLoss(InfoNCELoss(learnt=True)),
    "siglip": lambda: VectorLoss(SigLIPLoss()),
    "hect": HECTLoss,
    "distillation": MomentumDistillationLoss,
}


def measure_memory(name: str, rows: int = 16384, dim: int = 512) -> None:
    """Print the peak above inputs and gradients of forward and backward, and the seconds."""
    torch.set_num_threads(1)
    loss = LARGE[name]()
    for count in (2304, rows):  # the first loads code
        sides = [torch.randn(count, dim) for _ in range(4 if name == "distillation" else 2)]
        image, text = (side.requires_grad_() for side in sides[:2])
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before, start = _megabytes("VmRSS"), time.perf_counter()
        loss(image, text, *sides[2:]).backward()
        seconds = time.perf_counter() - start
        above = _megabytes("VmHWM") - before - 2 * count * dim * 4 / 2**20
    print(f"{name}, {rows} x {dim}: {above:.0f} MB above inputs and gradients, {seconds:.0f} s")


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    measure_memory(sys.argv[1], *map(int, sys.argv[2:]))
