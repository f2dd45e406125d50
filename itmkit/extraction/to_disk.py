"""Features of photos, captions or both, as ``itmkit extract`` computes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from itmkit.checks import InputError, check_count, check_unused
from itmkit.files import user_path

_RGB = tuple[float, float, float]
_OF_VIEWS = ("crop_scale", "flip", "seed")
_OF_PHOTOS = (
    *("checkpoint", "checkpoint_by_order", "pretrained", "image_size", "crop", "mean", "std"),
    *("views", "mirror_mean", "max_pixels", "follow_links", "out_index", "num_workers"),
    *_OF_VIEWS,
)
_OF_CAPTIONS = ("text_layers", "max_length")


def extract_to_disk(
    output: Path,
    model: str | None = None,
    text_model: str | None = None,
    *,
    images: Path | None = None,
    annotations: Path | None = None,
    split: str = "train",
    checkpoint: Path | None = None,
    checkpoint_by_order: bool = False,
    pretrained: bool = False,
    image_size: int | None = None,
    crop: float = 1.0,
    mean: _RGB | None = None,
    std: _RGB | None = None,
    views: int = 1,
    crop_scale: tuple[float, float] = (0.5, 1.0),
    flip: float = 0.0,
    mirror_mean: bool = False,
    seed: int = 0,
    max_pixels: int = 100_000_000,
    follow_links: bool = False,
    out_index: int = -1,
    text_layers: list[int] | None = None,
    max_length: int = 64,
    batch_size: int | None = None,
    num_workers: int = 0,
    device: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> dict[Path, str]:
    """Compute grid features of photos, token features of captions, or both, once, to disk.

    With ``model``, the folder is then the ``features`` of a KarpathyDataset, and the folder of a
    PrecompDataset; with ``text_model``, the ``text_features`` of ImageTextData. Stopped at any
    point, the same command continues.

    Args:
        output: folder to write to.
        model: name of a timm model, for photos.
        text_model: name of a transformers model on the hub, or a local folder, for captions.
        images: folder of the photos; or a tar or Parquet file with pictures inside, or a dataset
            that the library ``datasets`` saved, as of CaptionedFolder.
        annotations: Karpathy's dataset_*.json, whose photos may lack captions; or a table as of
            CaptionedFolder (CSV, TSV, JSONL, Parquet); or, for captions alone, a folder in the
            layout of SCAN. Where null, the captions inside ``images``; where it has none, every
            photo in it and in the folders inside it.
        split: split of the annotations to extract, and the first part of the names of the files.
        checkpoint: local file with the weights of the model (.safetensors or of torch.save).
        checkpoint_by_order: match the checkpoint's tensors by order and shape, not by name.
        pretrained: fetch the weights that timm knows for the model.
        image_size: side of the photos in pixels; where null, that of the model.
        crop: share of the scaled photo's shorter side that is kept, in (0, 1].
        mean: mean of the three channels, subtracted from pixels in [0, 1]; where null, that of the
            model.
        std: standard deviation of the three channels, divided by; where null, that of the model.
        views: how many views of a photo are stored: the plain one, and others that are cropped at
            random, of which training draws one by seed, epoch and caption.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability that a random crop is mirrored; 0 keeps left and right of captions true.
        mirror_mean: whether features are the mean of those of a photo and of its mirror image,
            turned back: twice the time, and better recall.
        seed: seed of the random crops.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are an error.
        follow_links: whether a link inside ``images`` may lead out of it.
        out_index: stage whose features are taken, -1 for the last.
        text_layers: hidden states of the text model that are stored side by side: 0 the
            embeddings, k the output of layer k, -1 the last, which is taken where null.
        max_length: most tokens of a caption, special ones included; the rest is cut off.
        batch_size: photos or captions at a time; where null, 128 captions, and 64 photos on a GPU
            or 16 on a CPU.
        num_workers: processes that read the photos.
        device: where the model runs; where null, a GPU if there is one.
        dtype: type of the numbers on disk.

    Returns:
        The path of each file of features, and how much is in it.

    Raises:
        InputError: neither model is given, an option does not fit, or the photos, captions or
            weights are not what they are said to be.
    """
    given = locals()
    import torch

    if not split or split != Path(split).name:
        raise InputError(f"split is {split!r}; expected a name for files, such as 'train'")
    if model is None and text_model is None:
        raise InputError("model and text_model are both null; expected one of them, or both")
    check_count(batch_size=1 if batch_size is None else batch_size)
    if model is None:
        check_unused(extract_to_disk, given, _OF_PHOTOS, "without model")
        if annotations is not None and not _is_table(user_path(annotations)):
            check_unused(
                extract_to_disk, given, ["images"], "without model and with such annotations"
            )
    if text_model is None:
        check_unused(extract_to_disk, given, _OF_CAPTIONS, "without text_model")
    if checkpoint is None:
        check_unused(extract_to_disk, given, ["checkpoint_by_order"], "without checkpoint")
    if views == 1:
        check_unused(extract_to_disk, given, _OF_VIEWS, "where views is 1")
    if model is not None and checkpoint is None and not pretrained:
        raise InputError(
            "checkpoint is null and pretrained false; expected one of them: weights would be random"
        )
    annotations = None if annotations is None else user_path(annotations)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    written: dict[Path, str] = {}
    if model is not None:
        from itmkit.data import CaptionedFolder, KarpathyDataset, Preprocessing
        from itmkit.data.photos import PhotoDataset, open_photos
        from itmkit.extraction.frozen import extract_by_timm

        if images is None:
            raise InputError("images is null; expected the folder of the photos")
        check_count(views=views, image_size=1 if image_size is None else image_size)
        own = Preprocessing.for_timm(model, size=image_size, crop=crop)
        own = replace(own, mean=mean or own.mean, std=std or own.std)
        photos: dict[str, Any] = {
            "preprocessing": own,
            "max_pixels": max_pixels,
            "follow_links": follow_links,
        }
        inside = _captions_inside(images, split) if annotations is None else None
        if _is_table(annotations) or inside is not None:
            dataset: PhotoDataset = CaptionedFolder(
                split, images, annotations, train_augment=False, **photos
            )
        else:
            dataset = KarpathyDataset(
                split, annotations, images, train_augment=False, require_captions=False, **photos
            )
        augmented = open_photos(
            split,
            dataset.names,
            images,
            augment=True,
            crop_scale=crop_scale,
            flip=flip,
            check_images=False,
            **photos,
        )
        path = extract_by_timm(
            dataset,
            model,
            output,
            checkpoint=checkpoint,
            checkpoint_by_order=checkpoint_by_order,
            pretrained=pretrained,
            image_size=own.size,
            out_index=out_index,
            mirror_mean=mirror_mean,
            augmented=augmented if views > 1 else None,
            views=views,
            seed=seed,
            batch_size=batch_size or (16 if device == "cpu" else 64),
            num_workers=num_workers,
            device=device,
            dtype=dtype,
        )
        written[path] = f"{len(dataset)} images" + (f", {views} views" if views > 1 else "")
    if text_model is not None:
        from itmkit.extraction.frozen import extract_by_transformers

        captions = _captions(annotations, images, split)
        path = extract_by_transformers(
            captions,
            text_model,
            output,
            layers=[-1] if text_layers is None else text_layers,
            max_length=max_length,
            split=split,
            batch_size=batch_size or 128,
            device=device,
            dtype=dtype,
        )
        written[path] = f"{len(set(captions))} captions"
    return written


def _captions_inside(images: Path | None, split: str) -> Any:
    """The files that hold pictures and their captions; None where they hold pictures alone."""
    from itmkit.data import open_pictures
    from itmkit.data.captioned_folder import CAPTION_COLUMNS

    pictures = None if images is None else open_pictures(images, split)
    found = pictures and pictures.table.find("", None, CAPTION_COLUMNS)
    return pictures if found else None


def _captions(annotations: Path | None, images: Path | None, split: str) -> list[str]:
    from itmkit.data import PrecompDataset, karpathy_captions
    from itmkit.data.captioned_folder import table_captions

    if annotations is None:
        inside = _captions_inside(images, split)
        if inside is None:
            raise InputError("annotations is null; expected where the captions are, for text_model")
        return table_captions(split, inside).sentences
    if _is_table(annotations):
        photos = None if images is None else user_path(images)
        return table_captions(split, annotations, photos=photos).sentences
    if annotations.is_dir():
        return PrecompDataset(split, annotations).captions
    return karpathy_captions(split, annotations, max_captions=None).sentences


def _is_table(annotations: Path | None) -> bool:
    """Whether captions are in a table, or in a folder of tables."""
    if annotations is None or not annotations.is_dir():
        return annotations is not None and annotations.suffix != ".json"
    return not any(annotations.glob("*_caps.txt"))
