"""A gallery as one file of safetensors: encodings, ids, names and captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from itmkit.checks import InputError
from itmkit.files import atomic_write, user_path
from itmkit.retrieval.encoding import Encoding

if TYPE_CHECKING:
    from itmkit.retrieval.encode import Gallery

FILE_NAME = "gallery.safetensors"
_FORMAT = "itmkit gallery 1"
_SIDES = ("images", "texts")
_IDS = ("image_ids", "text_image_ids", "text_ids")
_LISTS = ("names", "captions")


def save_gallery(gallery: Gallery, path: str | Path) -> None:
    """Write a gallery; see :meth:`itmkit.retrieval.Gallery.save`.

    Fields of encodings are called ``images.vector`` and so on; names and captions are JSON in
    UTF-8, as bytes.
    """
    tensors = {name: getattr(gallery, name) for name in _IDS}
    for side in _SIDES:
        for name, value in getattr(gallery, side).items().items():
            tensors[f"{side}.{name}"] = value
    for name in _LISTS:
        if (texts := getattr(gallery, name)) is not None:
            content = json.dumps(list(texts), ensure_ascii=True).encode()
            tensors[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    # each with its own memory, which safetensors asks for
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_write(user_path(path)) as file:
        file.write(save(own, {"format": _FORMAT, **_absent(gallery)}))


def _absent(gallery: Gallery) -> dict[str, str]:
    """The fields of each side that are None."""
    return {side: " ".join(getattr(gallery, side).absent()) for side in _SIDES}


def load_gallery(path: str | Path) -> dict[str, Any]:
    """The arguments of a gallery; see :meth:`itmkit.retrieval.Gallery.load`."""
    file = user_path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; expected what Gallery.save wrote")
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if about.get("format") != _FORMAT:
            raise InputError(f"the format is {about.get('format')!r}; expected {_FORMAT!r}")
        found: dict[str, Any] = {name: tensors.pop(name) for name in _IDS}
        found |= {name: _strings(tensors.pop(name)) for name in _LISTS if name in tensors}
        for side in _SIDES:
            fields = {n: value for n, value in tensors.items() if n.startswith(f"{side}.")}
            absent = dict.fromkeys(about.get(side, "").split())
            found[side] = Encoding(**{n.partition(".")[2]: v for n, v in fields.items()}, **absent)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{file} does not hold a gallery, or is cut short: {error}") from error
    return found


def _strings(content: Tensor) -> Sequence[str]:
    texts: list[str] = json.loads(content.numpy().tobytes())
    return texts
