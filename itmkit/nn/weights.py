"""Weights from a local file, and which of them are trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from itmkit import __version__
from itmkit.checks import InputError, type_of
from itmkit.files import user_path

_LACKING, _UNKNOWN = "not in the file", "not in the model"
_MOST_LISTED = 3  # tensors of each kind that does not fit, in an error


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
    if found := misfits(module, tensors):
        raise InputError(f"{misfits_text(module, found, str(path))}; expected those of the model")
    module.load_state_dict(tensors)


def misfits(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The tensors of a state dict or of a module that the other lacks or has in another shape.

    Returns:
        Name → what is wrong with it.

    Example:
        >>> misfits(nn.Linear(3, 2), {"weight": torch.zeros(4, 3), "b": torch.zeros(1)})
        {'b': 'not in the model', 'bias': 'not in the file', 'weight': '(4, 3), expected (2, 3)'}
    """
    own = module.state_dict()
    found = dict.fromkeys(own.keys() - tensors.keys(), _LACKING)
    found |= dict.fromkeys(tensors.keys() - own.keys(), _UNKNOWN)
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            found[name] = f"{tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
    return {name: found[name] for name in sorted(found)}


def misfits_text(module: nn.Module, found: Mapping[str, str], source: str) -> str:
    """What does not fit, the first few of each kind.

    Args:
        module: that the weights were meant for.
        found: of :func:`misfits`.
        source: of the weights.
    """
    shown: dict[str, list[str]] = {}
    for name, why in found.items():
        kind = why if why in (_LACKING, _UNKNOWN) else "shape"
        shown.setdefault(kind, []).append(f"{name} ({why})")
    first = [one for kind in shown.values() for one in kind[:_MOST_LISTED]]
    more = f" and {len(found) - len(first)} more" if len(found) > len(first) else ""
    return f"{source} does not fit {type(module).__name__}: {', '.join(first)}{more}"


@contextmanager
def report_misfits(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Around ``load_state_dict``: an error names the source and the tensors that do not fit.

    Args:
        module: that gets the weights.
        tensors: the state dict.
        source: of the weights, for the error.

    Raises:
        InputError: in the place of torch's ``RuntimeError``.
    """
    try:
        yield
    except RuntimeError as error:
        if not (found := misfits(module, tensors)):
            raise
        raise InputError(
            f"{misfits_text(module, found, source)}; expected those of the model"
        ) from error


@contextmanager
def stored_by(version: str | None) -> Iterator[None]:
    """Within it, an error about a file that another version of itmkit wrote says so.

    Args:
        version: of itmkit that wrote the file; None where the file does not say.

    Example:
        >>> with stored_by("0.0.1"):
        ...     raise InputError("model.ckpt does not fit MATE")
        Traceback (most recent call last):
        itmkit.checks.InputError: model.ckpt does not fit MATE; it was written by itmkit 0.0.1 ...
    """
    try:
        yield
    except InputError as error:
        if version == __version__:
            raise
        raise InputError(
            f"{error}; it was written by itmkit {version or 'of an unknown version'} and this is "
            f"itmkit {__version__}: use the version that wrote it, or train again with this one"
        ) from error


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


def read_torch_file(path: str | Path | IO[Any], name: str, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors and plain data, on the CPU.

    Args:
        path: of the file, or the file, open.
        name: what an error calls it.
        mmap: whether tensors stay on disk until they are used.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        InputError: if it is another file, broken, or holds objects of other classes, which are not
            made: their code could do anything.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch has errors of many types for a broken file
        reason = f": {str(error).partition(chr(10))[0]}" if isinstance(error, RuntimeError) else ""
        if other := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f": it holds an object of {other[1]}; expected tensors and plain data alone"
        raise InputError(f"{name} is not a readable file of torch.save{reason}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise InputError(f"checkpoint {path} cannot be read: {error}") from error
    content = read_torch_file(path, f"checkpoint {path}")
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise InputError(f"checkpoint {path} holds {type_of(content)}; expected a state dict")
    return dict(content)
