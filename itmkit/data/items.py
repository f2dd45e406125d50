"""Batches of a dataset: captions with images to train on, images with captions to judge by."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from itmkit.checks import InputError
from itmkit.data.batch import Batch, Images, Texts
from itmkit.data.caption_noise import CaptionNoise
from itmkit.data.caption_tokens import CaptionTokens
from itmkit.data.collate import collate_images, relate
from itmkit.data.dataset import BadSampleError, ImageTextDataset, Regions
from itmkit.data.loader import Loader
from itmkit.data.order import EpochOrder, ResumableLoader, mixed_seed, seeded
from itmkit.data.tokenizer import Tokenizer, pad_texts

_MOST_DRAWS = 100  # where half of the images can be used, no run will see so many bad ones

OnError = Literal["raise", "skip"]


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    split: str
    name: str
    reason: str


Skips = dict[tuple[str, str], Skipped]


class Collated(NamedTuple):
    """A batch, if any is left, and what was left out: news for the training process."""

    batch: Batch | None
    skipped: list[Skipped]


class TrainingPairs(Dataset[Collated]):
    """The captions of a dataset, each with its image; batches are asked for by (epoch, caption).

    In a batch the texts of a row are adjacent.
    """

    def __init__(
        self,
        dataset: ImageTextDataset,
        tokens: CaptionTokens,
        tokenizer: Tokenizer,
        *,
        views: int,
        distinct: bool,
        noise: CaptionNoise | None,
        relation_threshold: float | None,
        seed: int,
        on_error: OnError,
        skips: Skips,
    ) -> None:
        self.dataset = dataset
        self.in_bytes = dataset.in_bytes()
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.views = views
        self.distinct = distinct
        self.noise = noise
        self.relation_threshold = relation_threshold
        self.seed = seed
        self.on_error = on_error
        self.skips = skips

    def __getitems__(self, keys: list[tuple[int, int]]) -> Collated:
        images, keys, skipped = self._images(keys)
        if self.noise is None and not self.distinct:
            text_ids = torch.tensor([row for _, row in keys for _ in range(self.views)])
            texts = self.tokens.padded(text_ids, self.tokenizer.pad_id)
        else:
            text_ids, texts = self._drawn_texts(keys)
        text_image_ids = self.dataset.caption_images[text_ids]
        batch = Batch(
            images=relate(images, self.relation_threshold),
            texts=texts,
            image_ids=text_image_ids[:: self.views].clone(),
            text_image_ids=text_image_ids,
            text_ids=text_ids,
        )
        return Collated(batch, skipped)

    def _drawn_texts(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Texts]:
        captions: list[int] = []
        texts: list[list[int]] = []
        for epoch, row in keys:
            generator = Generator().manual_seed(mixed_seed(self.seed, epoch, row))
            rows = self._views(row, generator) if self.distinct else [row] * self.views
            views = [self.tokens[caption] for caption in rows]
            if self.noise is not None:
                views = [self.noise(view, self.tokenizer, generator) for view in views]
            captions += rows
            texts += [view.ids for view in views]
        return torch.tensor(captions), pad_texts(texts, self.tokenizer.pad_id)

    def _views(self, row: int, generator: Generator) -> list[int]:
        captions = self.dataset.captions_of(int(self.dataset.caption_images[row]))
        others = [caption for caption in captions if caption != row]
        drawn = torch.randperm(len(others), generator=generator)[: self.views - 1].tolist()
        return [row, *(others[i] for i in drawn), *[row] * (self.views - 1 - len(drawn))]

    def _images(
        self, keys: list[tuple[int, int]]
    ) -> tuple[Images, list[tuple[int, int]], list[Skipped]]:
        # and the keys again, with other rows where images were skipped
        if not self.dataset.augments:
            rows = torch.tensor([row for _, row in keys])
            try:
                images = self.in_bytes.read_images(self.dataset.caption_images[rows].tolist())
                return images, keys, []
            except BadSampleError:
                if self.on_error == "raise":
                    raise
        found, used, skipped = [], [], []
        for epoch, row in keys:
            image, row, bad = self._image(epoch, row)
            found.append(image)
            used.append((epoch, row))
            skipped += bad
        return collate_images(found), used, skipped

    def _image(self, epoch: int, row: int) -> tuple[Tensor | Regions, int, list[Skipped]]:
        skipped: list[Skipped] = []
        generator: Generator | None = None
        while True:
            image_row = int(self.dataset.caption_images[row])
            seed = mixed_seed(self.seed, epoch, row)
            try:
                with seeded(seed) if self.dataset.augments else nullcontext():
                    return self.in_bytes.image(image_row), row, skipped
            except BadSampleError as error:
                if self.on_error == "raise":
                    raise
                skipped.append(
                    Skipped(self.dataset.split, self.dataset.names[image_row], str(error))
                )
            if len(skipped) == _MOST_DRAWS:
                raise InputError(
                    f"{_MOST_DRAWS} images drawn at random cannot be used, the last one: "
                    f"{skipped[-1].reason}"
                )
            if generator is None:
                # drawn, and not the next one: the images behind bad ones would be seen more often
                generator = Generator().manual_seed(mixed_seed(self.seed, epoch, row, 1))
            row = int(torch.randint(len(self), (), generator=generator))

    def __len__(self) -> int:
        return len(self.dataset.captions)


class EvaluationImages(Dataset[Collated]):
    """The images of a dataset, each with all of its captions as they are.

    In a batch the captions follow the order of their images.
    """

    def __init__(
        self,
        dataset: ImageTextDataset,
        tokens: CaptionTokens,
        *,
        pad_id: int,
        relation_threshold: float | None,
        on_error: OnError,
        skips: Skips,
    ) -> None:
        self.dataset = dataset
        self.in_bytes = dataset.in_bytes()
        self.tokens = tokens
        self.pad_id = pad_id
        self.relation_threshold = relation_threshold
        self.on_error = on_error
        self.skips = skips

    def __getitems__(self, rows: list[int]) -> Collated:
        images, rows, skipped = self._images(rows)
        if images is None:
            return Collated(None, skipped)
        groups = [self.dataset.captions_of(row) for row in rows]
        image_ids = torch.tensor(rows)
        text_ids = torch.tensor(
            [caption for group in groups for caption in group], dtype=torch.int64
        )
        batch = Batch(
            images=relate(images, self.relation_threshold),
            texts=self.tokens.padded(text_ids, self.pad_id),
            image_ids=image_ids,
            text_image_ids=image_ids.repeat_interleave(
                torch.tensor([len(group) for group in groups])
            ),
            text_ids=text_ids,
        )
        return Collated(batch, skipped)

    def _images(self, rows: list[int]) -> tuple[Images | None, list[int], list[Skipped]]:
        try:
            return self.in_bytes.read_images(rows), rows, []
        except BadSampleError:
            if self.on_error == "raise":
                raise
        images, used, skipped = [], [], []
        for row in rows:
            try:
                images.append(self.in_bytes.image(row))
                used.append(row)
            except BadSampleError as error:
                skipped.append(Skipped(self.dataset.split, self.dataset.names[row], str(error)))
        return collate_images(images) if images else None, used, skipped

    def relevance(self, image_rows: Tensor, caption_rows: Tensor) -> Tensor | None:
        """As :meth:`ImageTextDataset.relevance`; None where that says no more than the ids do."""
        if type(self.dataset).relevance is ImageTextDataset.relevance:
            return None
        return self.dataset.relevance(image_rows, caption_rows)

    def __len__(self) -> int:
        return len(self.dataset)


class TrainingLoader(ResumableLoader):
    """Yields the batches of :class:`TrainingPairs`."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in _batches(super().__iter__(), self.dataset):  # type: ignore[arg-type]
            if isinstance(self.sampler, EpochOrder):  # whole batches, the same on every process
                yield replace(batch, sizes=(len(batch),) * self.sampler.num_replicas)
            else:
                yield batch


class EvaluationLoader(Loader):
    """Yields the batches of :class:`EvaluationImages` that are not empty."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _batches(super().__iter__(), self.dataset)  # type: ignore[arg-type]


def _batches(
    collated: Iterator[Collated], items: TrainingPairs | EvaluationImages
) -> Iterator[Batch]:
    for batch, skipped in collated:
        for skip in skipped:
            _note(skip, items)
        if batch is not None:
            yield replace(batch, images=items.dataset.normalise(batch.images))


def _note(skip: Skipped, items: TrainingPairs | EvaluationImages) -> None:
    key = (skip.split, skip.name)
    if key in items.skips:
        return
    items.skips[key] = skip
    count, images = sum(split == skip.split for split, _ in items.skips), len(items.dataset)
    if 2 * count > images:
        raise InputError(
            f"{count} of the {images} images of the split {skip.split!r} were skipped; expected "
            f"at most half of them. The last one: {skip.reason}"
        )
    warnings.warn(f"skipped: {skip.reason}", stacklevel=2)
