"""What a resumed run needs to be the run that was not stopped, and Lightning does not save."""

from __future__ import annotations

import os
import random
from hashlib import sha256
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from itmkit._internals import (
    accumulates,
    draw_order_again,
    logged_step,
    metrics_to_log,
    restart_epoch_anew,
    restart_whole_validation,
    set_logged_step,
    validation_follows,
)
from itmkit.distributed import rank, world_size

KEY = "resume"
SEED = "PL_GLOBAL_SEED"  # variable of the environment in which seed_everything leaves the seed
# Of DDP: whether the next forward pass takes the buffers of the first process. Not right after an
# evaluation, or a batch whose gradients are accumulated.
_SHARES_BUFFERS = "require_forward_param_sync"


class ExactResume(Callback):
    """Adds to every checkpoint of a run what makes it resume bit for bit.

    That is the state of the random numbers, the gradients of a batch that is still accumulated, and
    buffers such as BatchNorm's running statistics, all of every process; what was about to be
    logged, and whether a validation was to come. And it corrects two errors of Lightning in runs
    with ``max_steps``: where that ended training inside an epoch, the checkpoint says that the
    epoch is over, and a longer run that resumes would leave out the rest of it; and a run that
    resumes from the end of an epoch would leave out the next one.

    On another number of processes, or with another seed, each process draws new random numbers.

    The order of the data is not its part. Inside an epoch the training data must go on where it
    was: a loader with ``state_dict``, such as those of :class:`~itmkit.data.ImageTextData`. At the
    end of an epoch any loader does that shuffles by torch's random numbers.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Noisy(BoringModel):
        ...     def training_step(self, batch, batch_idx):
        ...         return super().training_step(batch + torch.randn(()), batch_idx)
        >>> loader = torch.utils.data.DataLoader(torch.randn(2, 32))
        >>> def fit(*epochs):
        ...     torch.manual_seed(0)
        ...     model, last = Noisy(), None
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         for max_epochs in epochs:
        ...             trainer = Trainer(
        ...                 accelerator="cpu", max_epochs=max_epochs, callbacks=[ExactResume()],
        ...                 logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                 enable_model_summary=False,
        ...             )
        ...             trainer.fit(model, loader, ckpt_path=last, weights_only=True)
        ...             last = f"{folder}/last.ckpt"
        ...             trainer.save_checkpoint(last)
        ...     return model.layer.weight
        >>> fit(1, 3).equal(fit(3))
        True
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._validates = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._resumed, self._validates = None, False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validates = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validates = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        mine = {
            "random": _random_state(),
            "gradients": _gradients(trainer, pl_module),
            "buffers": _own_buffers(pl_module),
            "shares_buffers": getattr(trainer.model, _SHARES_BUFFERS, True),
        }
        gathered = [mine] * world_size()
        if world_size() > 1:
            dist.all_gather_object(gathered, mine)
        validation_comes = _at_batch_end(trainer) and validation_follows(trainer)
        checkpoint[KEY] = {
            "processes": gathered,
            "row": _row_to_come(trainer),
            "validates": self._validates or validation_comes,
            "seed": os.environ.get(SEED),
        }
        loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        if validation_comes:  # as saved inside of it: Lightning would leave it out
            for count in (batches["total"], batches["current"]):
                count["completed"] = count["processed"]
        inside = 0 < batches["current"]["ready"] < trainer.num_training_batches
        if inside and not batches["is_last_batch"]:
            for count in epochs.values():
                count["processed"] = count["started"] - 1
                count["completed"] = min(count["completed"], count["processed"])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        self._resumed = checkpoint.get(KEY)
        if self._resumed is None:
            rank_zero_warn(
                "the checkpoint was saved without ExactResume: the resumed run is not exactly the "
                "one that was stopped"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._resumed is None:
            if rank():  # or every process would draw the same dropout; the first as one alone
                torch.manual_seed(torch.initial_seed() + rank())
            return
        _begin_next_epoch(trainer)
        if self._resumed["validates"]:  # all of it, not the rest that Lightning would do
            restart_whole_validation(trainer)
        processes, row = self._resumed["processes"], self._resumed["row"]
        as_many = len(processes) == world_size()
        if as_many:
            mine = processes[rank()]
            _set_buffers(pl_module, mine["buffers"])
            if hasattr(trainer.model, _SHARES_BUFFERS):
                setattr(trainer.model, _SHARES_BUFFERS, mine["shares_buffers"])
        if as_many and self._resumed["seed"] == os.environ.get(SEED):
            _set_random_state(processes[rank()]["random"])
        else:
            _reseed(trainer.global_step)
        _set_gradients(pl_module, [one["gradients"] for one in processes])
        for logger in trainer.loggers if row else ():
            logger.log_metrics(dict(row["metrics"]), step=row["step"])
            logger.save()

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._resumed is not None:
            # The step that is logged: Lightning is one off where the checkpoint was saved after a
            # validation or at the end of an epoch.
            set_logged_step(trainer, trainer.global_step)
            self._resumed = None


def _begin_next_epoch(trainer: Trainer) -> None:
    """Where the checkpoint is the end of an epoch, nothing of that epoch is left to restart."""
    fit = trainer.fit_loop
    counts: list[Any] = [fit.epoch_progress.total, fit.epoch_progress.current]
    if fit.restarting and all(one.ready == one.started == one.processed for one in counts):
        for one in counts:
            one.completed = one.processed
        restart_epoch_anew(trainer)
    if not fit.restarting:
        draw_order_again(trainer)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _reseed(step: int) -> None:
    """Random numbers of this process alone that no run with this seed has drawn before a step."""
    mixed = np.random.SeedSequence([torch.initial_seed(), world_size(), rank(), step])
    seed = int(mixed.generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _gradients(trainer: Trainer, pl_module: LightningModule) -> dict[str, torch.Tensor]:
    if not accumulates(trainer):
        return {}
    parameters = pl_module.named_parameters()
    return {name: one.grad for name, one in parameters if one.grad is not None}


def _set_gradients(pl_module: LightningModule, processes: list[dict[str, torch.Tensor]]) -> None:
    """Those of this process; on another number of processes the mean, as of DDP."""
    mine = [processes[rank()]] if len(processes) == world_size() else processes
    parameters = dict(pl_module.named_parameters())
    for name in {name: None for gradients in mine for name in gradients}:
        found = [gradients[name] for gradients in mine if name in gradients]
        parameter = parameters[name]
        parameter.grad = sum(found[1:], found[0]).to(parameter.device) / len(mine)


def _own_buffers(pl_module: LightningModule) -> dict[str, torch.Tensor]:
    """The buffers in which this process differs from the first, whose are in the checkpoint."""
    if world_size() == 1:
        return {}
    buffers = dict(pl_module.named_buffers())
    digests = {name: _digest(buffer) for name, buffer in buffers.items()}
    gathered = [digests] * world_size()
    dist.all_gather_object(gathered, digests)
    return {name: one for name, one in buffers.items() if digests[name] != gathered[0].get(name)}


def _digest(tensor: torch.Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return sha256(content.numpy().tobytes()).digest()


def _set_buffers(pl_module: LightningModule, saved: dict[str, torch.Tensor]) -> None:
    buffers = dict(pl_module.named_buffers())
    with torch.no_grad():
        for name in saved.keys() & buffers.keys():  # a model may leave out what it does not need
            buffers[name].copy_(saved[name])


def _at_batch_end(trainer: Trainer) -> bool:
    """Whether callbacks are at the end of a training batch, before it is logged."""
    count: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return trainer.training and count.processed != count.completed


def _row_to_come(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning logs of this step right after callbacks have saved it."""
    if not trainer.loggers or not _at_batch_end(trainer) or accumulates(trainer):
        return None
    logged = metrics_to_log(trainer)
    if logged is None:
        return None
    metrics = {"epoch": trainer.current_epoch, **convert_tensors_to_scalars(logged)}
    return {"metrics": metrics, "step": logged_step(trainer)}
