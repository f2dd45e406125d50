"""Features of a frozen backbone, written to disk once."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from itmkit.checks import InputError, check_choice, check_count
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.loader import Loader
from itmkit.files import user_path, write_text
from itmkit.modes import evaluation_mode, on_device


def extract_features(
    dataset: ImageTextDataset,
    backbone: nn.Module,
    output: str | Path,
    *,
    name: str = "",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    dtype: Literal["float16", "float32"] = "float16",
    progress: bool = True,
) -> Path:
    """Write the features of every image of a split, in the layout of SCAN.

    :class:`~itmkit.data.PrecompDataset` reads the folder, and so does
    :class:`~itmkit.data.KarpathyDataset` as its ``features``; no captions are written of a dataset
    that has none. Stopped at any point, the same call goes on behind the last whole batch; the
    files get their names only when all is done.

    Args:
        dataset: serves pixels, the same at every reading (no random augmentation).
        backbone: pixels ``(B, 3, H, W)`` → (tokens ``(B, N, D)``, mask or None), the same N for
            all images. If it has a ``grid`` (rows, columns; for pixels of ``image_size``, where it
            has that too), its tokens are the cells of that grid, row by row, and get boxes; a
            count of tokens alone is no grid. Its modes and devices are afterwards as before.
        output: folder to write to, made where missing.
        name: of the backbone, noted beside the features.
        batch_size: images at a time.
        num_workers: processes that read the images.
        device: where the backbone runs.
        dtype: of the numbers on disk.
        progress: whether a bar is shown.

    Returns:
        The path of ``{split}_ims.npy``.

    Raises:
        BadSampleError: if an image cannot be read. With it mended, the same call goes on.
        OSError: if the folder cannot be written to, or the disk is full.
        InputError: if an argument is out of its range, the folder holds features of other
            settings, the images are not pixels of one size or change from reading to reading, or a
            feature is not finite in ``dtype``.
    """
    check_count(batch_size=batch_size)
    check_count(0, num_workers=num_workers)
    check_choice("dtype", dtype, ("float16", "float32"))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without it
        reason = str(error).partition("\n")[0]
        raise InputError(f"device is '{device}'; expected one of this machine: {reason}") from error
    folder = user_path(output)
    target = folder / f"{dataset.split}_ims.npy"
    part = folder / f"{dataset.split}_ims.npy.part"
    notes = folder / f"{dataset.split}_features.json"
    state = folder / f"{dataset.split}_progress.json"

    with evaluation_mode(backbone), on_device(backbone, device):
        first = _first_pixels(dataset)
        tokens = _forward(backbone, first[None].to(device))
        settings = {
            "backbone": name,
            "weights": _digest(_bytes_of(backbone)),
            "images": _digest(item.encode() for item in dataset.names),
            "first_image": _digest([first.numpy().tobytes()]),
            "preprocessing": _preprocessing(dataset),
            "image_size": list(first.shape[1:]),
            "shape": [len(dataset), *tokens.shape[1:]],
            "grid": _grid(backbone, tokens.shape[1], first.shape[1:]),
            "dtype": dtype,
        }
        if target.exists():
            found = _read(notes)
            _check_settings(target, notes, found, settings)
            if dataset.captions and found.get("captions") == 0:
                _write_texts(dataset, folder, settings)
            return target
        folder.mkdir(parents=True, exist_ok=True)
        header = _header((len(dataset), *tokens.shape[1:]), dtype)
        row_size = tokens[0].numel() * np.dtype(dtype).itemsize
        done = 0
        if part.exists() and state.exists():
            found = _read(state)
            _check_settings(part, state, found.get("settings", {}), settings)
            done = found.get("done", -1)
            there = (part.stat().st_size - len(header)) // row_size
            if not isinstance(done, int) or not 0 <= done <= there:
                raise InputError(
                    f"{part} has {there} images; expected {done}, as in {state.name}: delete both"
                )
        _check_room(folder, (len(dataset) - done) * row_size)
        loader = Loader(
            Subset(_Pixels(dataset), range(done, len(dataset))),
            batch_size=batch_size,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        bar = tqdm(
            total=len(dataset),
            initial=done,
            unit=" images",
            desc=f"extract {dataset.split}",
            disable=not progress,
        )
        # Written, not mapped: on a full disk a write is an error, and a map the end of the process.
        with bar, part.open("r+b" if done else "wb", buffering=0) as file:
            _write_all(file, header)
            file.seek(len(header) + done * row_size)
            for pixels in loader:
                block = _forward(backbone, pixels.to(device)).cpu().numpy()
                with np.errstate(over="ignore"):
                    block = block.astype(dtype)
                finite = np.isfinite(block).all(axis=(1, 2))
                if not finite.all():
                    row = done + int(np.argmin(finite))
                    raise InputError(
                        f"the features of image {dataset.names[row]!r} are not finite in {dtype}"
                    )
                _write_all(file, block.tobytes())
                done += len(block)
                _write(state, json.dumps({"done": done, "settings": settings}))
                bar.update(len(block))
    _write_texts(dataset, folder, settings)
    os.replace(part, target)
    state.unlink(missing_ok=True)
    return target


class _Pixels(Dataset[Tensor]):
    def __init__(self, dataset: ImageTextDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, row: int) -> Tensor:
        pixels = self.dataset.image(row)
        if not isinstance(pixels, Tensor):
            raise InputError(f"dataset serves {type(pixels).__name__}; expected pixels")
        return pixels

    def __len__(self) -> int:
        return len(self.dataset)


def _first_pixels(dataset: ImageTextDataset) -> Tensor:
    pixels = _Pixels(dataset)
    first = pixels[0]
    if not torch.equal(first, pixels[0]):
        raise InputError("dataset augments its images at random; expected train_augment=False")
    return first


@torch.inference_mode()
def _forward(backbone: nn.Module, pixels: Tensor) -> Tensor:
    tokens, mask = backbone(pixels)
    if tokens.ndim != 3 or (mask is not None and not bool(mask.all())):
        raise InputError(
            f"backbone gives tokens {tuple(tokens.shape)}"
            f"{' with padding' if mask is not None else ''}; expected (B, N, D) without padding"
        )
    result: Tensor = tokens.float()
    return result


def _grid(backbone: nn.Module, tokens: int, size: Sequence[int]) -> list[int] | None:
    """Rows and columns, where the backbone says them for images of this size."""
    grid, image_size = (getattr(backbone, name, None) for name in ("grid", "image_size"))
    if grid is None or (image_size is not None and list(size) != [image_size, image_size]):
        return None
    rows, columns = grid
    if rows * columns != tokens:
        raise InputError(f"backbone has the grid {(rows, columns)}, but gives {tokens} tokens")
    return [rows, columns]


def _preprocessing(dataset: ImageTextDataset) -> dict[str, Any] | None:
    return None if dataset.preprocessing is None else dataset.preprocessing.to_dict()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part + b"\n")
    return digest.hexdigest()[:16]


def _bytes_of(backbone: nn.Module) -> Iterable[bytes]:
    for name, tensor in backbone.state_dict().items():
        yield name.encode()
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_settings(
    path: Path, notes: Path, found: dict[str, Any], settings: dict[str, Any]
) -> None:
    other = [key for key in settings if found.get(key) != settings[key]]
    if other:
        key = other[0]
        raise InputError(
            f"{path} was made with other settings: {key} is {found.get(key)!r} in {notes.name}, "
            f"but {settings[key]!r} now. Choose another output, or delete the file"
        )


def _write_texts(dataset: ImageTextDataset, folder: Path, settings: dict[str, Any]) -> None:
    """Write the names and captions, and last the notes, which say how many captions there are."""
    _write(folder / f"{dataset.split}_ids.txt", "".join(f"{line}\n" for line in dataset.names))
    if dataset.captions:
        groups = [dataset.captions_of(row) for row in range(len(dataset))]
        captions = [" ".join(dataset.captions[i].split()) for group in groups for i in group]
        _write(folder / f"{dataset.split}_caps.txt", "".join(f"{line}\n" for line in captions))
        if Counter(map(len, groups)).keys() != {5}:
            rows = "".join(f"{row}\n" * len(group) for row, group in enumerate(groups))
            _write(folder / f"{dataset.split}_cap_images.txt", rows)
    notes = {**settings, "captions": len(dataset.captions)}
    _write(folder / f"{dataset.split}_features.json", json.dumps(notes, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    write_text(path, text)


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"the features need {size:,} bytes, but only {free:,} are free",
            str(folder),
        )


def _write_all(file: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    with _naming(Path(file.name)):
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
