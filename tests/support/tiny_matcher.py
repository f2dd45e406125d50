"""A system and data so small that a whole run of the command line takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from itmkit.data.batch import Batch, Images, Texts
from itmkit.data.dataset import ImageTextDataset
from itmkit.retrieval import Encoding
from itmkit.systems import Matcher


class TinyMatcher(Matcher):
    """The mean colour of an image against the mean embedding of a text."""

    def __init__(self, dim: int = 4, rate: float = 0.1, words: int = 16) -> None:
        super().__init__(optimizer=lambda params: torch.optim.SGD(params, lr=rate))
        self.image = nn.Linear(3, dim)
        self.text = nn.Embedding(words, dim)

    def encode_image(self, images: Images) -> Encoding:
        return Encoding(vector=self.image(images.features.mean((2, 3))))

    def encode_text(self, texts: Texts) -> Encoding:
        return Encoding(vector=self.text(texts.ids).mean(1))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return images.vector @ texts.vector.T

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        scores = self.score(self.encode_image(batch.images), self.encode_text(batch.texts))
        targets = torch.arange(len(scores))
        return {"loss": nn.functional.cross_entropy(scores, targets)}


class OptimizedMatcher(TinyMatcher):
    """The same with any optimizer and schedule."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.lr_factors = lr_factors or {}


class OtherMatcher(TinyMatcher):
    """The same under another name."""


class FaultyMatcher(TinyMatcher):
    """The same with a fault of the program in its constructor."""

    def __init__(self, dim: int = 4, rate: float = 0.1) -> None:
        super().__init__(dim, rate)
        dict(zip(range(dim), range(dim + 1), strict=True))


class BreakingMatcher(TinyMatcher):
    """The same until a batch whose loss is not a number, or has gradients that are none.

    Args:
        broken: number of that batch in the run, from 0.
        gradients: break the gradients and not the loss.
    """

    def __init__(
        self, dim: int = 4, rate: float = 0.1, broken: int = 3, gradients: bool = False
    ) -> None:
        super().__init__(dim, rate)
        self.broken = broken
        self.gradients = gradients
        self.batches = 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        contrast = super().loss(batch)["loss"]
        if self.batches == self.broken and self.gradients:
            contrast.register_hook(lambda gradient: gradient * torch.inf)
        elif self.batches == self.broken:
            contrast = contrast * torch.nan
        self.batches += 1
        return {"contrast": contrast, "other": contrast.new_ones(()), "loss": contrast + 1}


class TinyDataset(ImageTextDataset):
    """Plain colours and their names.

    Args:
        split: its name.
        broken: how it fails: ``missing`` and ``value`` when opened, ``bug`` too, ``image`` and
            ``third`` when an image is read, in ``train`` alone with the latter.
        prefixes: of the captions, by split.
    """

    def __init__(
        self, split: str, broken: str | None = None, prefixes: dict[str, str] | None = None
    ) -> None:
        self.broken = broken
        if broken == "missing":
            Path("no/such/captions.txt").read_text()
        if broken == "bug":
            raise KeyError("bug")
        captions = ["a red field", "a green field", "a blue field", "a black field"]
        captions = [(prefixes or {}).get(split, "") + caption for caption in captions]
        rows = [] if broken == "empty" else [0, 1, 2, 3]
        super().__init__(split, [f"{row}.jpg" for row in rows], captions, rows)

    def image(self, row: int) -> Tensor:
        if self.broken == "image" or (self.broken == "third" and self.split == "train" and row):
            raise FileNotFoundError(f"{self.names[row]} is missing")
        colour = torch.zeros(3, 1, 1)
        colour[row : row + 1] = 1.0
        return colour.expand(3, 2, 2)


class Elsewhere(CSVLogger):
    """A logger that writes to the working directory unless told otherwise, as wandb's does."""

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, name="elsewhere", version="")


class StopHard(Callback):
    """Stops a run in the middle of an epoch, as a crash does."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        if trainer.global_step == 3:
            raise KeyError("crash")
