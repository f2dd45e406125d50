"""What encoders that wrap a whole model have in common: it is trained, or frozen."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class FreezableBackbone(nn.Module):
    """Base of the encoders that wrap a whole model.

    Args:
        frozen: the model is never trained: no gradient, always in eval mode.

    Attributes:
        backbone: the model, which the subclass sets.
    """

    backbone: Any

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _set_gradients(self, *, given: bool) -> None:
        """Train the model or not; a module that was given keeps what it has frozen itself."""
        if self.frozen or not given:
            self.backbone.requires_grad_(not self.frozen)

    def _grad(self) -> torch.set_grad_enabled:
        """Gradients in a forward pass, but none in a frozen model."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)
