"""Features of a frozen backbone, written to disk once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from itmkit.checks import InputError, check_choice, check_count
from itmkit.data.array_writer import ArrayWriter, digest, digest_of_weights
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.feature_file import view_path
from itmkit.data.images import ImageSource
from itmkit.data.loader import Loader
from itmkit.data.order import mixed_seed
from itmkit.files import user_path, write_text
from itmkit.modes import evaluation_mode, on_device, usable_device


def extract_features(
    dataset: ImageTextDataset,
    backbone: nn.Module,
    output: str | Path,
    *,
    name: str = "",
    config: Mapping[str, Any] | None = None,
    augmented: ImageSource | None = None,
    views: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    dtype: Literal["float16", "float32"] = "float16",
    progress: bool = True,
) -> Path:
    """Write the features of every image of a split, in the layout of SCAN.

    :class:`~itmkit.data.PrecompDataset` reads the folder, and so does
    :class:`~itmkit.data.KarpathyDataset` as its ``features``; no captions are written of a dataset
    that has none. Stopped at any point, the same call continues after the last whole batch; the
    files get their names only when all is done.

    Args:
        dataset: serves pixels, the same at every reading (no random augmentation).
        backbone: pixels ``(B, 3, H, W)`` → (tokens ``(B, N, D)``, mask or None), the same N for
            all images. If it has a ``grid`` (rows, columns; for pixels of ``image_size``, where it
            has that too), its tokens are the cells of that grid, row by row, and get boxes; a
            count of tokens alone is no grid. Its modes and devices are afterwards as before.
        output: folder to write to, made where missing.
        name: of the backbone, noted beside the features.
        config: what the backbone can be built from again, ``class_path`` and ``init_args``, noted
            too: :func:`itmkit.load` then makes features of other pictures.
        augmented: the same images, drawn at random; where ``views`` is more than 1.
        views: stored of an image: the plain one, and ``views - 1`` that are drawn from
            ``augmented``. Training takes one of them, evaluation the plain one.
        seed: of what is drawn, at least 0.
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
    check_count(batch_size=batch_size, views=views)
    check_count(0, num_workers=num_workers, seed=seed)
    check_choice("dtype", dtype, ("float16", "float32"))
    device = usable_device(device)
    if (augmented is None) != (views == 1):
        raise InputError(
            f"views is {views} and augmented {'None' if augmented is None else 'given'}; expected "
            "images drawn at random for more than one view, and none for one"
        )
    folder, split = user_path(output), dataset.split
    notes = folder / f"{split}_features.json"
    plain = dataset.source

    with evaluation_mode(backbone), on_device(backbone, device):
        first = _first_pixels(plain)
        tokens = _forward(backbone, plain.as_floats(first)[None].to(device))
        settings = {
            "backbone": name,
            "weights": digest_of_weights(backbone),
            "images": digest(item.encode() for item in dataset.names),
            "first_image": digest([first.numpy().tobytes()]),
            "preprocessing": plain.preprocessing and plain.preprocessing.to_dict(),
            "image_size": list(first.shape[1:]),
            "shape": [len(dataset), *tokens.shape[1:]],
            "grid": _grid(backbone, tokens.shape[1], first.shape[1:]),
            "dtype": dtype,
        }

        def write(writer: ArrayWriter, source: ImageSource, view: int) -> None:
            rows = range(writer.done, len(dataset))
            loader = Loader(
                Subset(_Pixels(source, seed, view), rows),
                batch_size=batch_size,
                num_workers=num_workers,
                generator=torch.Generator().manual_seed(0),
            )
            what = f"extract {split}" + (f", view {view}" if view else "")
            bar = tqdm(
                total=len(dataset),
                initial=writer.done,
                unit=" images",
                desc=what,
                disable=not progress,
            )
            with bar:
                for pixels in loader:
                    block = _forward(backbone, source.as_floats(pixels).to(device)).cpu().numpy()
                    names = dataset.names[writer.done : writer.done + len(block)]
                    writer.write(block, [f"image {name!r}" for name in names])
                    bar.update(len(block))

        target = folder / f"{split}_ims.npy"
        progress_file = folder / f"{split}_progress.json"
        with ArrayWriter(target, settings, notes=notes, progress=progress_file) as writer:
            if writer.complete is None:
                write(writer, plain, 0)
                _write_texts(dataset, folder, settings, config)
                writer.finish()
            elif dataset.captions:  # there may be others by now
                _write_texts(dataset, folder, settings, config or writer.complete.get("config"))
        for view in range(1, views):
            assert augmented is not None
            path = view_path(folder, split, view)
            drawn = _Pixels(augmented, seed, view)[0].numpy().tobytes()
            own = {**settings, "first_image": digest([drawn]), "view": view, "seed": seed}
            view_notes, view_progress = (
                path.with_suffix(end) for end in (".json", ".progress.json")
            )
            with ArrayWriter(path, own, notes=view_notes, progress=view_progress) as writer:
                if writer.complete is None:
                    write(writer, augmented, view)
                    write_text(view_notes, json.dumps(own, indent=2) + "\n")
                    writer.finish()
    return target


class _Pixels(Dataset[Tensor]):
    """The pixels of images as a source has them, in bytes where it can; view 0 is the plain one."""

    def __init__(self, source: ImageSource, seed: int, view: int) -> None:
        self.source, self.seed, self.view = source, seed, view

    def __getitem__(self, row: int) -> Tensor:
        pixels = self.source.drawn(
            row, mixed_seed(self.seed, self.view, row) if self.view else None
        )
        if not isinstance(pixels, Tensor):
            raise InputError(f"dataset serves {type(pixels).__name__}; expected pixels")
        return pixels

    def __len__(self) -> int:
        return len(self.source)


def _first_pixels(source: ImageSource) -> Tensor:
    pixels = _Pixels(source, 0, 0)
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


def _write_texts(
    dataset: ImageTextDataset,
    folder: Path,
    settings: dict[str, Any],
    config: Mapping[str, Any] | None,
) -> None:
    """Write the names and captions, and last the notes, which say how many captions there are."""
    groups = [dataset.captions_of(row) for row in range(len(dataset))]
    texts = [[dataset.captions[caption] for caption in group] for group in groups]
    write_captions(folder, dataset.split, dataset.names, texts)
    notes = {**settings, "captions": len(dataset.captions), "config": config}
    write_text(folder / f"{dataset.split}_features.json", json.dumps(notes, indent=2) + "\n")


def write_captions(
    folder: Path, split: str, names: Sequence[str], captions: Sequence[Sequence[str]]
) -> None:
    """Write names and captions in the layout of SCAN.

    Args:
        folder: to write to.
        split: first part of the names of the files.
        names: one an image.
        captions: of every image; no file is written where none has any.
    """
    write_text(folder / f"{split}_ids.txt", "".join(f"{line}\n" for line in names))
    lines = [" ".join(text.split()) for group in captions for text in group]
    if lines:
        write_text(folder / f"{split}_caps.txt", "".join(f"{line}\n" for line in lines))
        assigned = folder / f"{split}_cap_images.txt"
        if Counter(map(len, captions)).keys() != {5}:
            rows = "".join(f"{row}\n" * len(group) for row, group in enumerate(captions))
            write_text(assigned, rows)
        else:
            assigned.unlink(missing_ok=True)  # of the captions that were there before
