"""What ``--trainer.sync_batchnorm true`` does."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.utils.hooks import RemovableHandle

from itmkit.nn import synchronise_batch_norm


class BatchNormSync(TorchSyncBatchNorm):
    """Synchronises the BatchNorm layers of a model as they are; Lightning's replaces them."""

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
