"""The private operator of PyTorch that itmkit uses, named here alone and checked at import."""

from __future__ import annotations

from typing import Any

import torch

#: ``(x, weight, bias, "none", [], "")`` → ``x @ weight.T + bias`` by oneDNN, as PyTorch's compiler
#: has it; None where this PyTorch lacks it.
linear_pointwise: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()
    else None
)
