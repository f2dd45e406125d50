"""Photos and captions whose features frozen models give once, into a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from itmkit.checks import InputError, check_count
from itmkit.data import (
    CaptionedImages,
    ImageTextData,
    ImageTextDataset,
    Photos,
    Preprocessing,
)
from itmkit.data.array_writer import digest
from itmkit.data.stored_features import extracted_features
from itmkit.extraction.frozen import extract_by_timm, extract_by_transformers
from itmkit.files import default_cache, file_state, fill_once, user_path


class FrozenFeatureData(ImageTextData):
    """Batches of features that frozen models gave once, of photos and of captions.

    The features of a split are extracted when it is first opened, into a folder of the cache that
    is printed. Its name has a hash of the model with its weights, of the photos by name, size and
    time of change, and of the captions: what was extracted of others is not used.

    Args:
        dataset: as of :class:`ImageTextData`; of photos, such as :class:`CaptionedFolder`.
        image_model: name of a timm model, whose grid features are taken; see :class:`TimmGrid`.
        image_checkpoint: local file with its weights; None: those that timm knows, which are
            fetched.
        image_checkpoint_by_order: match the tensors of ``image_checkpoint`` by order and shape,
            not by name.
        image_size: side of the photos in pixels; None: that of the model.
        image_views: features of so many views of every training photo: the whole one, and others
            that are cropped at random as ``crop_scale`` and ``flip`` of the dataset say. Training
            draws one of them. Extracting takes as many times as long.
        image_mirror_mean: whether features are the mean of those of a photo and of its mirror
            image, also those of a search: better recall for twice the time.
        text_model: name or folder of a transformers model, whose last hidden states are taken; the
            text encoder is then a :class:`itmkit.nn.StoredTokens`. None: captions are words.
        cache: folder for the features; None: ``itmkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        **kwargs: see :class:`ImageTextData`.

    Raises:
        InputError: ``text_model`` is given with ``text_features`` or ``tokenizer``, which it takes
            the place of; when a split is opened, if it is not of photos, or a model is not found.
    """

    def __init__(
        self,
        dataset: Callable[[str], ImageTextDataset],
        image_model: str,
        *,
        image_checkpoint: str | Path | None = None,
        image_checkpoint_by_order: bool = False,
        image_size: int | None = None,
        image_views: int = 1,
        image_mirror_mean: bool = False,
        text_model: str | Path | None = None,
        cache: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        instead = [name for name in ("text_features", "tokenizer") if kwargs.get(name) is not None]
        if text_model is not None and instead:
            raise InputError(
                f"text_model is '{text_model}', and {instead[0]} is given too; expected one of them"
            )
        self.cache = default_cache() if cache is None else user_path(cache)
        if text_model is not None:
            kwargs["text_features"] = self.cache
        super().__init__(dataset, **kwargs)
        self.image_model, self.image_checkpoint = image_model, image_checkpoint
        self.image_checkpoint_by_order = image_checkpoint_by_order
        check_count(image_views=image_views)
        self.image_size, self.image_views, self.text_model = image_size, image_views, text_model
        self.image_mirror_mean = image_mirror_mean

    def text_folder(self, split: str) -> Path:
        """Folder of the token features of a split; extracted when first asked for."""
        if self.text_model is None:
            return user_path(super().text_folder(split))
        captions = self.split(split).captions
        folder = user_path(self.text_model)
        files = sorted(folder.glob("*")) if folder.is_dir() else []
        made_of = [str(self.text_model), *map(file_state, files), *captions]
        return self._once(
            f"token features of {len(captions)} captions ({split})",
            f"{folder.name}-{_digest(made_of)}",
            lambda output: self._extract_text(captions, split, output),
        )

    def _served(self, photos: ImageTextDataset) -> ImageTextDataset:
        """The features of a split of photos; extracted where the cache has none."""
        source = photos.source
        if not isinstance(source, Photos) or not isinstance(photos, CaptionedImages):
            raise InputError(
                f"dataset serves {type(source).__name__}; expected photos, as of CaptionedFolder"
            )
        source = source.serving(training=False)
        own = Preprocessing.for_timm(self.image_model, size=self.image_size, crop=1.0)
        source.preprocessing = own
        plain, augmented = photos.with_images(source), copy(source)
        augmented.augments = True
        views = self.image_views if photos.split == self.train_split else 1
        checkpoint = None if self.image_checkpoint is None else user_path(self.image_checkpoint)
        if checkpoint is not None and not checkpoint.is_file():
            raise FileNotFoundError(f"image_checkpoint '{checkpoint}' is not a file")
        made_of = [
            self.image_model,
            json.dumps(own.to_dict()),
            "" if checkpoint is None else hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            str(self.image_checkpoint_by_order),
            *(f"{name} {source.state(row)}" for row, name in enumerate(photos.names)),
            f"{views} views {source.crop_scale} {source.flip}" if views > 1 else "",
            *(["mirror mean"] if self.image_mirror_mean else []),
        ]
        folder = self._once(
            f"features of {len(photos)} photos ({photos.split})"
            + (f" in {views} views" if views > 1 else ""),
            f"{self.image_model.replace('/', '-')}-{_digest(made_of)}",
            lambda output: self._extract_images(plain, augmented, views, own.size, output),
        )
        return photos.with_images(extracted_features(photos.split, photos.names, folder))

    def _once(self, what: str, name: str, extract: Callable[[Path], Path]) -> Path:
        """The folder of the cache of that name, filled by the process that comes first."""
        folder = self.cache / name
        rank_zero_only(print)(f"{what}: {folder}")
        fill_once(folder, extract)
        return folder

    def _extract_images(
        self,
        photos: CaptionedImages,
        augmented: Photos,
        views: int,
        size: int,
        output: Path,
    ) -> Path:
        return extract_by_timm(
            photos,
            self.image_model,
            output,
            checkpoint=self.image_checkpoint,
            checkpoint_by_order=self.image_checkpoint_by_order,
            pretrained=self.image_checkpoint is None,
            image_size=size,
            mirror_mean=self.image_mirror_mean,
            augmented=augmented if views > 1 else None,
            views=views,
            num_workers=self.num_workers,
            device=_device(),
        )

    def _extract_text(self, captions: list[str], split: str, output: Path) -> Path:
        assert self.text_model is not None
        return extract_by_transformers(
            captions, self.text_model, output, split=split, device=_device()
        )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _digest(parts: list[str]) -> str:
    return digest(part.encode("utf-8", "surrogatepass") for part in parts)
