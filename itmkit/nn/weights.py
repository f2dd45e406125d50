"""Weights from a local file, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, type_of
from itmkit.files import user_path


def load_weights(module: nn.Module, path: str | Path, *, by_order: bool = False) -> None:
    """Load a state dict from a file into ``module``, all of it.

    Args:
        module: receives the weights.
        path: ``.safetensors``, or a file of ``torch.save`` (read with ``weights_only=True``) that
            holds a state dict, bare or under the key ``state_dict`` or ``model``.
        by_order: match tensors by their order and shape, not by name.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is broken, or the names, number or shapes of its tensors do not fit.

    Example:
        >>> import tempfile
        >>> source, target = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": source.weight, "b": source.bias}, f"{folder}/weights.pth")
        ...     load_weights(target, f"{folder}/weights.pth", by_order=True)
        >>> torch.equal(source.weight, target.weight)
        True
    """
    path = user_path(path)
    tensors = _read(path)
    own = module.state_dict()
    if by_order:
        if len(tensors) != len(own):
            raise InputError(
                f"{path} holds {len(tensors)} tensors; expected {len(own)}, those of the model"
            )
        tensors = dict(zip(own, tensors.values(), strict=True))
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise InputError(
            f"{path} lacks {len(missing)} tensors {missing[:3]} and has {len(unexpected)} unknown "
            f"ones {unexpected[:3]}; expected those of the model"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{name} in {path} has the shape {tuple(tensor.shape)}; expected "
                f"{tuple(own[name].shape)}, that of the model"
            )
    module.load_state_dict(tensors)


def freeze_unused(module: nn.Module, output: Tensor) -> None:
    """Stop training the parameters of ``module`` that ``output`` does not depend on.

    DistributedDataParallel waits for a gradient of every trained parameter, and a pretrained model
    often has some that a given output does not use (a pooler, a classifier's norm).

    Args:
        module: the model that computed ``output`` with gradients on.
        output: any tensor of its graph.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(trained)
    if trained and output.requires_grad:
        grads = torch.autograd.grad(output.sum(), trained, allow_unused=True)
    for parameter, grad in zip(trained, grads, strict=True):
        if grad is None:
            parameter.requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own for a broken file
        raise InputError(f"checkpoint {path} cannot be read: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise InputError(f"checkpoint {path} holds {type_of(content)}; expected a state dict")
    return dict(content)
