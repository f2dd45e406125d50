"""BatchNorm over all processes, for a Trainer with ``sync_batchnorm=True``."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.utils.hooks import RemovableHandle

from itmkit.nn import synchronise_batch_norm


class BatchNormSync(TorchSyncBatchNorm):
    """Synchronises the BatchNorm layers of a model as they are; Lightning's replaces them.

    So they keep what their classes add, such as a mask or an activation, and the names of their
    weights (:func:`~itmkit.nn.synchronise_batch_norm`). A plugin of the
    Trainer, which needs ``sync_batchnorm`` too.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     accelerator="cpu", sync_batchnorm=True, plugins=[BatchNormSync()], logger=False
        ... )
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []

    def apply(self, model: nn.Module) -> nn.Module:
        self._handles = synchronise_batch_norm(model)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return model
