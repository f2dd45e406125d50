"""How a run stops when it, or one of its processes, receives a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from itmkit._internals import (
    callbacks_of,
    note_sigterm,
    set_signal_handlers,
    share_no_sigterm,
    signal_handlers,
)
from itmkit.distributed import leave, world_size
from itmkit.training.checkpoints import LastCheckpoint


class StopOnSignal(Callback):
    """Lets all processes of a run stop at the same point, saved and ready to be resumed.

    The handlers only set a flag: a handler runs between any two lines, and Lightning's own would
    there wait for processes that are at other lines. After each training batch, and once
    in each evaluation, all agree whether any has received one; this takes the place of a broadcast
    that Lightning makes in each step. In one process Lightning's handlers stay as they are, but
    for one thing: the end of an evaluation, which may score a gallery for minutes, is left out.

    SIGTERM stops the run, and so does the first Ctrl-C (SIGINT) while it trains; a second one ends
    the process at once. SLURM's signal before the time is up also requeues the job. ``fit`` then
    raises Lightning's ``SIGTERMException``, a ``SystemExit``; :class:`LastCheckpoint` saves before.

    Example:
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> interrupt = LambdaCallback(
        ...     on_train_batch_start=lambda *_: signal.raise_signal(signal.SIGINT)
        ... )
        >>> trainer = Trainer(
        ...     accelerator="cpu", max_steps=9, logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ...     callbacks=[interrupt, StopOnSignal()],
        ... )
        >>> try:
        ...     trainer.fit(BoringModel())
        ... except SIGTERMException:
        ...     print(f"stopped at step {trainer.global_step}")
        stopped at step 1
    """

    def __init__(self) -> None:
        self.interrupted = False  # by Ctrl-C, this process or another
        self._terminated = self._requeues = False  # noted here
        self._stops = False  # agreed on
        self._scores = False  # the end of an evaluation, in one process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if world_size() == 1:
            own, _ = signal_handlers(trainer)

            def terminate_alone(number: int, frame: Any) -> None:
                own(number, frame)
                if self._scores:
                    raise SIGTERMException

            set_signal_handlers(trainer, terminate_alone)
            return

        def terminate(number: int, frame: Any) -> None:
            if not self._terminated and trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(number)  # of the processes that this one started
            self._terminated = True

        def requeue(number: int, frame: Any) -> None:
            self._requeues = True

        set_signal_handlers(trainer, terminate, requeue)
        share_no_sigterm(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: at the end Lightning puts back the handlers that it found before this.
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return

        def interrupt(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the next one ends at once
            if trainer.is_global_zero:
                os.write(2, b"\nCtrl-C: saving and ending after this step; again: ending at once\n")
            self.interrupted = True
            if world_size() > 1:
                self._terminated = True
            else:
                note_sigterm(trainer)
                if self._scores:
                    raise SIGTERMException

        signal.signal(signal.SIGINT, interrupt)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if world_size() > 1:
            # Lightning ends the run where this step is logged, or after the epoch that it closes.
            note_sigterm(trainer, self._agree(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Processes may have different numbers of batches, so not each of these is a meeting.
        if self._stops or ((self._terminated or self._requeues) and self._agree(trainer)):
            raise SIGTERMException

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores = world_size() == 1
        if trainer.received_sigterm or self._stops or (world_size() > 1 and self._agree(trainer)):
            raise SIGTERMException

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores = False

    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def _agree(self, trainer: Trainer) -> bool:
        """Whether any process has noted a signal; all ask at the same point."""
        device = trainer.strategy.root_device
        flags = [self._terminated, self._requeues, self.interrupted]
        noted = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(noted, dist.ReduceOp.MAX)
        terminated, requeues, self.interrupted = map(bool, noted.tolist())
        if requeues:
            signal_handlers(trainer)[1](0, None)
        self._stops = terminated or requeues
        return self._stops


@contextmanager
def exit_on_signal(trainer: Trainer) -> Iterator[None]:
    """Exit with the status of a process that a signal ended, and print how to resume.

    Args:
        trainer: that runs within, with a :class:`StopOnSignal`, and a :class:`LastCheckpoint` to
            go on from.

    Raises:
        SystemExit: with the status 128 + the number of the signal.

    Example:
        >>> trainer = Trainer(accelerator="cpu", callbacks=[StopOnSignal()], logger=False)
        >>> with exit_on_signal(trainer):
        ...     raise SIGTERMException  # what trainer.fit raises
        Traceback (most recent call last):
        SystemExit: 143
    """
    try:
        yield
    except SystemExit as stop:  # Lightning's answer to SIGTERM and Ctrl-C
        interrupted = any(one.interrupted for one in callbacks_of(trainer, StopOnSignal))
        if isinstance(stop, SIGTERMException):
            ended_by = signal.SIGINT if interrupted else signal.SIGTERM
        elif isinstance(stop.__context__, KeyboardInterrupt):
            ended_by = signal.SIGINT
        else:
            raise
        if trainer.is_global_zero:
            paths = (one.path for one in callbacks_of(trainer, LastCheckpoint))
            saved = next((path for path in paths if path.is_file()), None)
            hint = f"; to go on: --ckpt_path {saved}" if saved else ""
            print(f"itmkit: ended by {ended_by.name}{hint}", file=sys.stderr)
        if isinstance(stop, SIGTERMException):  # all are here
            leave()
            if not trainer.is_global_zero:
                sys.exit()  # the first speaks for all: Lightning kills it where another fails
        sys.exit(128 + ended_by)
