"""Which precision a Trainer takes where it runs on a CPU."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.utilities import rank_zero_warn


def precision_on_cpu(precision: Any, accelerator: Any) -> dict[str, str]:
    """The argument ``precision`` of a Trainer where the one given is replaced.

    On a CPU, Lightning would take bf16-mixed for 16-mixed, which many processors are several times
    slower in.
    """
    if precision not in (16, "16", "16-mixed") or not _runs_on_cpu(accelerator):
        return {}
    rank_zero_warn("trainer.precision '16-mixed' needs a GPU: '32-true' is used on this CPU")
    return {"precision": "32-true"}


def _runs_on_cpu(accelerator: Any) -> bool:
    """Whether a Trainer would take the CPU, asked before there is one."""
    if accelerator == "auto":
        return not (CUDAAccelerator.is_available() or MPSAccelerator.is_available())
    return accelerator == "cpu" or isinstance(accelerator, CPUAccelerator)
