"""The private operator of PyTorch that itmkit uses, named here alone and checked at first use."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` of fp32 matrices by oneDNN, as PyTorch's compiler calls it."""
    operator: Any = torch.ops.mkldnn._linear_pointwise
    rows: Tensor = operator(x, weight, bias, "none", [], "")
    return rows


@cache
def has_onednn_linear() -> bool:
    """Whether this PyTorch has the operator and it computes what ``F.linear`` does.

    Tried once a process, with numbers that take nothing from the random generator. A warning tells
    of an operator that is there and fails.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    x, weight, bias = (
        torch.linspace(-1, 1, count, dtype=torch.float32, device="cpu") for count in (12, 20, 5)
    )
    x, weight = x.view(3, 4), weight.view(5, 4)
    with torch.no_grad():
        try:
            right = all(
                torch.allclose(onednn_linear(x, weight, b), F.linear(x, weight, b), atol=1e-5)
                for b in (bias, None)
            )
        except (RuntimeError, TypeError) as error:  # another signature in another PyTorch
            reason = str(error).partition("\n")[0]
        else:
            reason = "" if right else "its result is wrong"
    if reason:
        warnings.warn(
            f"oneDNN's linear operator fails in PyTorch {torch.__version__} ({reason}): large fp32 "
            "products go through torch.nn.functional.linear, which may be slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return not reason
