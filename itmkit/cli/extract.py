"""``itmkit extract``: features of a frozen backbone, once, to disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

from itmkit.checks import InputError, check_count
from itmkit.cli.parser import OneLineParser

_RGB = tuple[float, float, float]


def extract_photos(
    images: Path,
    output: Path,
    model: str,
    *,
    annotations: Path | None = None,
    split: str = "train",
    checkpoint: Path | None = None,
    checkpoint_by_order: bool = False,
    pretrained: bool = False,
    image_size: int | None = None,
    crop: float = 1.0,
    mean: _RGB | None = None,
    std: _RGB | None = None,
    max_pixels: int = 100_000_000,
    follow_links: bool = False,
    out_index: int = -1,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> None:
    """Compute a timm backbone's grid features of photos, once, to disk.

    The folder is then the ``features`` of a KarpathyDataset, and the folder of a PrecompDataset.
    Stopped at any point, the same command goes on where it was.

    Args:
        images: folder of the photos.
        output: folder to write to.
        model: name of a timm model.
        annotations: Karpathy's dataset_*.json, whose photos may lack captions; where null, every
            photo in ``images`` and the folders inside it.
        split: split of the annotations to extract, and the first part of the names of the files.
        checkpoint: local file with the weights of the model (.safetensors or of torch.save).
        checkpoint_by_order: match the checkpoint's tensors by order and shape, not by name.
        pretrained: fetch the weights that timm knows for the model.
        image_size: side of the photos in pixels; where null, that of the model.
        crop: share of the scaled photo's shorter side that is kept, in (0, 1].
        mean: of the three channels, subtracted from pixels in [0, 1]; where null, as the model
            knows it, and so for ``std``.
        std: of the three channels, divided by.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are an error.
        follow_links: whether a link inside ``images`` may lead out of it.
        out_index: stage whose features are taken, -1 for the last.
        batch_size: photos at a time.
        num_workers: processes that read the photos.
        device: where the model runs; where null, a GPU if there is one.
        dtype: of the numbers on disk.
    """
    import torch

    from itmkit.data import KarpathyDataset, Preprocessing, extract_features
    from itmkit.nn import TimmGrid

    if image_size is not None:
        check_count(image_size=image_size)
    preprocessing = Preprocessing.for_timm(model, size=image_size, crop=crop)
    preprocessing = replace(
        preprocessing, mean=mean or preprocessing.mean, std=std or preprocessing.std
    )
    if checkpoint is None and not pretrained:
        raise InputError("checkpoint is null and pretrained false; the weights would be random")
    if not split or split != Path(split).name:
        raise InputError(f"split is {split!r}; expected a name for files, such as 'train'")
    dataset = KarpathyDataset(
        split,
        annotations,
        images,
        preprocessing=preprocessing,
        train_augment=False,
        require_captions=False,
        max_pixels=max_pixels,
        follow_links=follow_links,
    )
    backbone = TimmGrid(
        model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        checkpoint_by_order=checkpoint_by_order,
        image_size=preprocessing.size,
        out_index=out_index,
        frozen=True,
    )
    path = extract_features(
        dataset,
        backbone,
        output,
        name=model,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=dtype,
    )
    print(f"{path}: {len(dataset)} images")


def extract(arguments: Sequence[str]) -> None:
    """Run ``itmkit extract`` with its options."""
    auto_cli(
        extract_photos,
        args=list(arguments),
        as_positional=False,
        parser_class=OneLineParser,
        prog="itmkit extract",
        allow_abbrev=False,
    )
