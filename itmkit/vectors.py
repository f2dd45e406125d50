"""Unit vectors, and one over a norm, with gradients that stay bounded near zero."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.precision import at_least_float32

EPS = 1e-4
"""Norm below which a vector fades to zero: gradients through a norm are at most about 2 / EPS."""


def l2_normalize(x: Tensor, dim: int = -1, eps: float = EPS) -> Tensor:
    r"""Scale vectors to length one; those shorter than ``eps`` fade to zero, gradient and all.

    .. math::
        \hat{x} = \frac{x}{\lVert x \rVert_2} \quad (t \ge 1), \qquad
        \hat{x} = \frac{x}{\varepsilon} \Big(\tfrac52 t^2 - \tfrac32 t^4\Big) \quad (t < 1), \qquad
        t = \lVert x \rVert_2 / \varepsilon

    Value and gradient are continuous, no gradient is longer than 2 / ε times what comes in, and
    zero stays zero with a zero gradient. Differs from ``torch.nn.functional.normalize``: that
    divides by at least ε, so that small vectors get gradients of 1 / ε.

    Args:
        x: vectors of any floating dtype. Half precision is normalised in fp32. A vector whose
            square does not fit its dtype (a norm of 1.8e19 in fp32) becomes zero too, with a zero
            gradient.
        dim: dimension that holds the vectors.
        eps: norm from which on a vector gets length one, above 0.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Example:
        >>> l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    wide = at_least_float32(x)
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    long = norm >= eps  # at the bound, the gradient of one branch alone
    share = (norm / eps).where(~long, 1).square()
    scale = _fade(share) / norm.where(long, eps)
    # The gradient of what overflows is 0, and not the product of an infinite sum and of 0.
    scaled: Tensor = wide * scale.masked_fill(norm == torch.inf, 0)
    return scaled.to(x.dtype)


def inverse_norm(square: Tensor, eps: float = EPS) -> Tensor:
    """One over the norm of vectors, from their squared norm; the scale of :func:`l2_normalize`.

    Args:
        square: squared norms, in at least fp32; what rounding has made negative counts as zero.
        eps: norm below which the result fades to zero.

    Example:
        >>> inverse_norm(torch.tensor([0.0, 4.0]))
        tensor([0.0000, 0.5000])
    """
    least = eps * eps
    long = square >= least
    share = (square.clamp(min=0) / least).where(~long, 1)
    scale = _fade(share) * square.where(long, least).rsqrt()
    return scale.masked_fill(square == torch.inf, 0)  # for the gradient, as above


def _fade(share: Tensor) -> Tensor:
    """From 0 at 0 to 1 at 1, with the slope there that lets ``1 / norm`` go on smoothly."""
    return share * (2.5 - 1.5 * share)
