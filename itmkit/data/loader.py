"""The way of a batch: what a worker process reads, and the loader that hands it over."""

from __future__ import annotations

import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from itmkit.checks import InputError
from itmkit.data.batch import Batch, Images, Texts
from itmkit.data.caption_noise import CaptionNoise
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.images import BadSampleError, Regions, collate_images, relate, without_regions
from itmkit.data.order import EpochOrder, mixed_seed
from itmkit.data.tokenizer import CaptionTokens, Tokenizer, pad_texts

_MOST_DRAWS = 100  # where half of the images can be used, no run will see so many bad ones

OnError = Literal["raise", "skip"]


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    split: str
    name: str
    reason: str


Skips = dict[tuple[str, str], Skipped]


class Collated(NamedTuple):
    """What a worker sends: a batch, None where nothing is left of it, and the images skipped."""

    batch: Batch | None
    skipped: list[Skipped]


class Items(Dataset[Collated], ABC):
    """The captions of a dataset as ids, and its images: batches of them, by key."""

    training = True

    def __init__(
        self,
        *,
        dataset: ImageTextDataset,
        tokens: CaptionTokens,
        tokenizer: Tokenizer,
        relation_threshold: float | None,
        on_error: OnError,
        skips: Skips,
    ) -> None:
        self.dataset = dataset
        self.source = dataset.source.serving(training=self.training)
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.relation_threshold = relation_threshold
        self.on_error = on_error
        self.skips = skips

    @abstractmethod
    def __getitems__(self, keys: list[Any]) -> Collated:
        """The batch of some keys, as a worker process sends it."""

    def received(self, collated: Collated) -> Batch | None:
        """The batch, in the training process: pixels as floats, what was left out noted."""
        batch, skipped = collated
        for skip in skipped:
            self._note(skip)
        if batch is None:
            return None
        pixels = self.source.as_floats(batch.images.features)
        return replace(batch, images=replace(batch.images, features=pixels))

    def _note(self, skip: Skipped) -> None:
        key = (skip.split, skip.name)
        if key in self.skips:
            return
        self.skips[key] = skip
        count = sum(split == skip.split for split, _ in self.skips)
        if 2 * count > len(self.dataset):
            raise InputError(
                f"{count} of the {len(self.dataset)} images of the split {skip.split!r} were "
                f"skipped; expected at most half of them. The last one: {skip.reason}"
            )
        warnings.warn(f"skipped: {skip.reason}", stacklevel=2)

    def _image(self, row: int, seed: int | None) -> Tensor | Regions | Skipped:
        """An image, or why there is none."""
        try:
            return self.source.drawn(row, seed)
        except BadSampleError as error:
            return Skipped(self.dataset.split, self.dataset.names[row], str(error))


class TrainingPairs(Items):
    """The captions of a dataset, each with its image; batches are asked for by (epoch, number).

    The number is that of a caption among those that are trained on; ids and randomness follow from
    its row in the dataset.

    In a batch the texts of a row are adjacent.
    """

    def __init__(
        self,
        *,
        views: int,
        distinct: bool,
        noise: CaptionNoise | None,
        seed: int,
        region_drop: float = 0.0,
        kept: Tensor | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.kept = kept  # rows of the captions that are trained on; None: all
        self.views = views
        self.distinct = distinct
        self.noise = noise
        self.seed = seed
        self.region_drop = region_drop

    @property
    def lengths(self) -> Tensor:
        """Tokens of every caption that is trained on."""
        return self.tokens.lengths if self.kept is None else self.tokens.lengths[self.kept]

    def __getitems__(self, keys: list[tuple[int, int]]) -> Collated:
        if self.kept is not None:
            keys = [(epoch, int(self.kept[number])) for epoch, number in keys]
        images, keys, skipped = self._images(keys)
        if self.region_drop:
            seeds = [mixed_seed(self.seed, *key, 2) for key in keys]
            images = without_regions(images, self.region_drop, seeds)
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
            captions += rows
            if self.noise is not None:
                views = (self.tokens[caption] for caption in rows)
                texts += [self.noise(view, self.tokenizer, generator).ids for view in views]
        text_ids, pad_id = torch.tensor(captions), self.tokenizer.pad_id
        if self.noise is None:
            return text_ids, self.tokens.padded(text_ids, pad_id)
        return text_ids, pad_texts(texts, pad_id)

    def _views(self, row: int, generator: Generator) -> list[int]:
        captions = self.dataset.captions_of(int(self.dataset.caption_images[row]))
        others = [caption for caption in captions if caption != row and self._is_kept(caption)]
        drawn = torch.randperm(len(others), generator=generator)[: self.views - 1].tolist()
        return [row, *(others[i] for i in drawn), *[row] * (self.views - 1 - len(drawn))]

    def _is_kept(self, row: int) -> bool:
        if self.kept is None:
            return True
        place = int(torch.searchsorted(self.kept, row))
        return place < len(self.kept) and int(self.kept[place]) == row

    def _images(
        self, keys: list[tuple[int, int]]
    ) -> tuple[Images, list[tuple[int, int]], list[Skipped]]:
        # and the keys again, with other rows where images were skipped
        seeds = [self._seed(key) for key in keys] if self.source.augments else None
        rows = self.dataset.caption_images[[row for _, row in keys]].tolist()
        try:
            return self.source.read(rows, seeds), keys, []
        except BadSampleError:
            if self.on_error == "raise":
                raise
        found, used, skipped = [], [], []
        for key in keys:
            image, row, bad = self._image_or_other(*key)
            found.append(image)
            used.append((key[0], row))
            skipped += bad
        return collate_images(found), used, skipped

    def _image_or_other(self, epoch: int, row: int) -> tuple[Tensor | Regions, int, list[Skipped]]:
        skipped: list[Skipped] = []
        # drawn, and not the next one: the images behind bad ones would be seen more often
        generator = Generator().manual_seed(mixed_seed(self.seed, epoch, row, 1))
        while len(skipped) < _MOST_DRAWS:
            seed = self._seed((epoch, row)) if self.source.augments else None
            image = self._image(int(self.dataset.caption_images[row]), seed)
            if not isinstance(image, Skipped):
                return image, row, skipped
            skipped.append(image)
            row = int(torch.randint(len(self), (), generator=generator))
            row = row if self.kept is None else int(self.kept[row])
        raise InputError(
            f"{_MOST_DRAWS} images drawn at random cannot be used, the last one: "
            f"{skipped[-1].reason}"
        )

    def _seed(self, key: tuple[int, int]) -> int:
        return mixed_seed(self.seed, *key)

    def __len__(self) -> int:
        return len(self.dataset.captions) if self.kept is None else len(self.kept)


class EvaluationImages(Items):
    """The images of a dataset, each with all of its captions as they are.

    In a batch the captions follow the order of their images, which are not augmented.
    """

    training = False

    def __getitems__(self, keys: list[int]) -> Collated:
        images, rows, skipped = self._images(keys)
        if images is None:
            return Collated(None, skipped)
        groups = [self.dataset.captions_of(row) for row in rows]
        image_ids = torch.tensor(rows)
        text_ids = torch.tensor(
            [caption for group in groups for caption in group], dtype=torch.int64
        )
        batch = Batch(
            images=relate(images, self.relation_threshold),
            texts=self.tokens.padded(text_ids, self.tokenizer.pad_id),
            image_ids=image_ids,
            text_image_ids=self.dataset.caption_images[text_ids],
            text_ids=text_ids,
        )
        return Collated(batch, skipped)

    def _images(self, rows: list[int]) -> tuple[Images | None, list[int], list[Skipped]]:
        try:
            return self.source.read(rows), rows, []
        except BadSampleError:
            if self.on_error == "raise":
                raise
        images, used, skipped = [], [], []
        for row in rows:
            image = self._image(row, None)
            if isinstance(image, Skipped):
                skipped.append(image)
            else:
                images.append(image)
                used.append(row)
        return collate_images(images) if images else None, used, skipped

    def relevance(self, image_rows: Tensor, caption_rows: Tensor) -> Tensor | None:
        """As :meth:`ImageTextDataset.relevance`; None where that says no more than the ids do."""
        if type(self.dataset).relevance is ImageTextDataset.relevance:
            return None
        return self.dataset.relevance(image_rows, caption_rows)

    def __len__(self) -> int:
        return len(self.dataset)


class Loader(DataLoader[Any]):
    """A DataLoader whose dead workers are an error when the next batch is asked for.

    torch also raises that error out of a handler of SIGCHLD, at whatever line the process is: while
    it logs, holds a lock or starts another worker, where the error is lost, taken for another one,
    or leaves the lock closed. This one takes the handler away again. Where data is waited for,
    torch looks after its workers every few seconds.

    Ctrl-C, which a terminal sends to all processes, does not reach the workers: the training
    process can save before it ends, and they end with it.

    Over an :class:`EpochOrder` it can go on in the middle of an epoch: Lightning saves
    :meth:`state_dict` with the checkpoint and names the epoch (``set_epoch``) before the first
    batch of every pass. What a worker read of :class:`Items` becomes a batch here, in the training
    process.
    """

    _seen = 0
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is read before the first `next`, when the epoch is known.
        order = self.sampler if isinstance(self.sampler, EpochOrder) else None
        resume, self._resume = self._resume, None
        self._seen = 0
        if order is not None:
            same = resume is not None and resume["epoch"] == order.epoch
            self._seen = order.skip = resume["batches"] if same and resume is not None else 0
        try:
            for batch in self._started():
                self._seen += 1
                if isinstance(self.dataset, Items):
                    batch = self.dataset.received(batch)
                    if batch is None:
                        continue
                    if order is not None:  # whole batches, the same on every process
                        batch = replace(batch, sizes=(len(batch),) * order.num_replicas)
                yield batch
        except (EOFError, ConnectionError) as error:
            if self.num_workers == 0 or "in DataLoader worker process" in str(error):
                raise  # out of the dataset
            raise RuntimeError("DataLoader worker was killed as it handed over a batch") from error

    def _started(self) -> Iterator[Any]:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or not hasattr(signal, "SIGCHLD"):  # torch sets no handler either
            return super().__iter__()
        handler = signal.getsignal(signal.SIGCHLD)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        epoch = self.sampler.epoch if isinstance(self.sampler, EpochOrder) else 0
        return {"epoch": epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass over that epoch start behind its batches already seen."""
        self._resume = dict(state)
