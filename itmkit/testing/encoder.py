"""Checks of an encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from itmkit.nn.contract import Encoder, LevelsEncoder, Tokens
from itmkit.testing.expect import expect


def check_encoder(make: Callable[[], nn.Module], inputs: Tensor, mask: Tensor | None) -> None:
    """Check that an encoder keeps the contract of :class:`itmkit.nn.Tokens`.

    Args:
        make: makes the encoder.
        inputs: a stack of at least two items: pixels ``(B, 3, H, W)``, region features
            ``(B, N, D)`` or token ids ``(B, L)``.
        mask: ``(B, N)`` or ``(B, L)`` bool, True on real tokens; None where none is padded.

    Raises:
        AssertionError: with the part of the contract that is broken.
    """
    torch.manual_seed(0)
    encoder = make()
    expect(isinstance(encoder, Encoder), "the encoder does not say its width as dim")
    levels = encoder.levels if isinstance(encoder, LevelsEncoder) else 1
    found = _levels(encoder(inputs, mask))
    expect(len(found) == levels, f"the encoder gives {len(found)} levels; it says {levels}")
    for tokens, out_mask in found:
        expect(
            tokens.ndim == 3 and tokens.shape[::2] == (len(inputs), encoder.dim),
            f"tokens have the shape {tuple(tokens.shape)}; "
            f"expected ({len(inputs)}, tokens, {encoder.dim})",
        )
        shape = tokens.shape[:2]
        fits = out_mask is None or (out_mask.dtype == torch.bool and out_mask.shape == shape)
        expect(fits, "the mask is not bool (B, N)")
    torch.stack([tokens.float().square().sum() for tokens, _ in found]).sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    expect(not unused, f"no gradient reaches {unused[:3]}")
    encoder.double().eval()
    wide = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        together = _levels(encoder(wide, mask))
        alone = _levels(encoder(wide[:1], None if mask is None else mask[:1]))
        for (many, many_mask), (one, _) in zip(together, alone, strict=True):
            real = slice(None) if many_mask is None else many_mask[0]
            worst = float((many[0][real] - one[0][real]).abs().max())
            expect(worst <= 1e-8, f"tokens change by {worst:.3g} with what else is in the stack")
        if mask is not None and not mask.all():
            fill = 7.0 if inputs.is_floating_point() else 1
            marked = mask.reshape(*mask.shape, *[1] * (inputs.ndim - 2))
            filled = _levels(encoder(wide.masked_fill(~marked, fill), mask))
            for (tokens, out_mask), (others, _) in zip(together, filled, strict=True):
                assert out_mask is not None
                worst = float((tokens - others)[out_mask].abs().max())
                expect(worst <= 1e-8, f"tokens change by {worst:.3g} with what padding holds")
        again = make().double().eval()
        again.load_state_dict(encoder.state_dict())
        for (tokens, _), (others, _) in zip(together, _levels(again(wide, mask)), strict=True):
            expect(torch.equal(tokens, others), "tokens differ after a state_dict round trip")


def _levels(out: Tokens | list[Tokens]) -> list[Tokens]:
    return out if isinstance(out, list) else [out]
