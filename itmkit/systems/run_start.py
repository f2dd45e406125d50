"""What is looked at before a run of a system starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from itmkit._internals import callbacks_of, data_module_of
from itmkit.checks import InputError
from itmkit.precision import warn_if_slow_on_cpu
from itmkit.systems.hubness_bank import bank_data

if TYPE_CHECKING:
    from itmkit.systems.matcher import Matcher


def check_run(matcher: Matcher, trainer: Trainer) -> None:
    """Raise for what a run cannot do as it is asked to; warn of what makes it slow.

    Raises:
        InputError: a second stage that the system does not have, callbacks that search a batch size
            or learning rate, or data that no bank of a correction can be filled from.
    """
    wants = matcher.rerank_top_k and (matcher.rerank_weight or matcher.rerank_most)
    if wants and not matcher.has_second_stage:
        raise InputError(
            f"rerank_top_k is {matcher.rerank_top_k} for a {type(matcher).__name__}, which has no "
            "second stage; expected 0"
        )
    for kind in (BatchSizeFinder, LearningRateFinder):
        if finders := callbacks_of(trainer, kind):
            raise InputError(
                f"trainer.callbacks has a {type(finders[0]).__name__}, which would train and "
                "rewind the model; expected none. Try values in short runs of their own, such as "
                "--trainer.max_steps 20"
            )
    if trainer.state.fn == "fit" and matcher.hubness_correction is not None:
        bank_data(data_module_of(trainer))
    precision = str(trainer.precision)
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and precision.startswith(("bf16", "16")) and trainer.is_global_zero:
        dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
        warn_if_slow_on_cpu(f"trainer.precision {precision!r}", dtype)
