"""Every module that normalises, on tokens of any norm: finite, with bounded gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from itmkit.nn import (
    AttentionFiltration,
    CrossAttentionSimilarity,
    FeatureDiscriminability,
    FusionEncoder,
    GuidedPooling,
    RefinedSimilarity,
    ScanAttention,
    TextRefinement,
    TwoPartGRU,
    VisualRefinement,
)

D = 8


def modules() -> dict[str, tuple[nn.Module, Callable[..., object]]]:
    """Each module, and how it is called with itself and tokens of images and texts."""
    relations = torch.ones(3, 5, 5)
    return {
        "attention filtration": (AttentionFiltration(D), lambda m, i, _: m(i)),
        "cross attention": (CrossAttentionSimilarity("both"), lambda m, i, t: m(i, t)),
        "sharp": (CrossAttentionSimilarity("both", smooth=25.0), lambda m, i, t: m(i, t)),
        "discriminability": (FeatureDiscriminability(0.1, 1.0), lambda m, i, _: m(i)),
        "fusion": (
            FusionEncoder(D, num_layers=1, num_heads=2).eval(),
            lambda m, i, t: m.pair_score(i.mean(1), i, None, t.mean(1), t, None),
        ),
        "guided pooling": (GuidedPooling(D), lambda m, i, _: m(i)),
        "refined similarity": (
            RefinedSimilarity(D, 4),
            lambda m, i, t: m(i, t, relations.to(i)),
        ),
        "scan attention": (ScanAttention(D), lambda m, i, t: m(i, t)),
        "text refinement": (TextRefinement(D), lambda m, i, t: m(t, i)),
        "two-part gru": (TwoPartGRU(D), lambda m, i, t: m(i, t)),
        "visual refinement": (VisualRefinement(D), lambda m, i, _: m(i, relations.to(i))),
    }


def tensors(out: object) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    return [t for part in out for t in tensors(part)] if isinstance(out, tuple) else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0, 1e-12, 1e-8, 3e-5, 1e-4, 1, 1e4, 1e15])
@pytest.mark.parametrize("name", modules())
def test_gradients_of_tokens_of_any_norm_are_bounded(
    name: str, norm: float, dtype: torch.dtype
) -> None:
    """One of them so long, then all of them."""
    if name == "discriminability" and norm > 1:
        pytest.skip("its output, and so the gradient of a square, grows with its input")
    module, call = modules()[name]
    module.to(dtype)
    image, text = torch.nn.functional.normalize(torch.randn(2, 3, 5, D, dtype=dtype), dim=-1)
    for scaled in (slice(0, 1), slice(None)):
        sides = [image.clone(), text.clone()]
        for side in sides:
            side[:, scaled] *= norm
            side.requires_grad_()
        found = tensors(call(module, *sides))
        assert found
        assert all(t.isfinite().all() for t in found)
        sum((t.square().sum() for t in found), torch.zeros(())).backward()
        for side in sides:
            if side.grad is not None:
                assert side.grad.norm() <= 1e6
