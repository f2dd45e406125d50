"""Feature discriminability inside the transformer blocks of a timm backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.modes import evaluation_mode
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability


def discriminate_blocks(
    model: nn.Module, discriminability: FeatureDiscriminability, pixels: Tensor
) -> None:
    r"""Put ``discriminability`` between the attention residual and the MLP of every block.

    .. math::
        x' = x + \mathrm{attention}(x), \qquad
        y = \mathrm{discriminate}(x'), \qquad
        \mathrm{out} = y + \mathrm{mlp}(\mathrm{norm}_2(y))

    Any block with ``norm2`` and ``mlp`` that normalises before each branch will do, such as those
    of Swin and ViT. The tokens are all those of one sample, not of a window; class and register
    tokens are among them. The model is changed in place, by hooks: its class and the keys of its
    state dict stay, and copies of it (``copy.deepcopy``, pickle) have hooks of their own.

    The placement of DAIM.

    Args:
        model: a timm model.
        discriminability: what to insert.
        pixels: an image ``(1, C, H, W)``, not a blank one, to find out what the blocks compute.

    Raises:
        InputError: the model has no such blocks, or has some that compute something else.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit").eval()
        >>> pixels = torch.randn(1, 3, 160, 160)
        >>> plain = model.forward_features(pixels)
        >>> discriminate_blocks(model, FeatureDiscriminability(), pixels)
        >>> torch.equal(model.forward_features(pixels), plain)
        False
    """
    blocks = {
        name: m
        for name, m in model.named_modules()
        if {"norm2", "mlp"} <= dict(m.named_children()).keys()
    }
    timm_config = getattr(model, "pretrained_cfg", None) or {}
    name = timm_config.get("architecture", type(model).__name__)
    if not blocks:
        raise InputError(
            f"model is a {name} without transformer blocks that have norm2 and mlp; expected some, "
            "to put the feature discriminability into"
        )
    faults = _faults(model, blocks, pixels)
    if faults:
        block_name, fault = next(iter(faults.items()))
        raise InputError(
            f"model is a {name}, whose {block_name} {fault}; expected blocks that add "
            "mlp(norm2(x)) to the tokens x (B, N, D)"
        )
    for block in blocks.values():
        inserted = _InBlock(discriminability)
        block.get_submodule("norm2").register_forward_pre_hook(inserted.before_norm2)
        block.register_forward_hook(inserted.after_block, always_call=True)


class _InBlock:
    """The two hooks of one block; what the first moves the tokens by, the second adds to the sum.

    Nothing is kept between two calls of the block, not even when activation checkpointing stops a
    second run of it half-way: ``after_block`` is called then too, without an output.
    """

    def __init__(self, discriminability: FeatureDiscriminability) -> None:
        self.discriminability = discriminability
        self.shift: Tensor | None = None

    def before_norm2(self, norm2: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        y = self.discriminability(x.flatten(1, -2)).reshape(x.shape)
        self.shift = y - x
        return (y, *args[1:])

    def after_block(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        shift, self.shift = self.shift, None
        return None if out is None or shift is None else out + shift.reshape(out.shape)


class _Trial:
    """Three hooks that find out what a block computes, in a run in which its MLP gives zero."""

    def __init__(self, block: nn.Module, *, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.x: Tensor | None = None
        self.normed: Tensor | None = None
        self.feeds_mlp = False
        self.fault: str | None = "was not run"
        self.handles = [
            block.get_submodule("norm2").register_forward_hook(self.after_norm2),
            block.get_submodule("mlp").register_forward_hook(self.after_mlp),
            block.register_forward_hook(self.after_block),
        ]

    def after_norm2(self, norm2: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        self.x, self.normed = args[0], out

    def after_mlp(self, mlp: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        self.feeds_mlp = args[0] is self.normed
        return torch.zeros_like(out)

    def after_block(self, block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if self.x is None or not self.feeds_mlp:
            self.fault = "does not give mlp the output of norm2"
        elif len(self.x) != 1 or self.x.ndim not in self.ranks:
            self.fault = f"gives norm2 the shape {tuple(self.x.shape)}"
        elif not isinstance(out, Tensor) or not torch.equal(out.flatten(), self.x.flatten()):
            self.fault = "does not add mlp to the input of norm2"
        else:
            self.fault = None


def _faults(model: Any, blocks: dict[str, nn.Module], pixels: Tensor) -> dict[str, str]:
    """What is wrong with the blocks that do not add mlp(norm2(x)) to x, by name."""
    ranks = (3, 4) if getattr(model, "output_fmt", None) == "NHWC" else (3,)
    trials = {name: _Trial(block, ranks=ranks) for name, block in blocks.items()}
    try:
        with evaluation_mode(model), torch.no_grad():
            model.forward_features(pixels)
    finally:
        for trial in trials.values():
            for handle in trial.handles:
                handle.remove()
    return {name: trial.fault for name, trial in trials.items() if trial.fault is not None}
