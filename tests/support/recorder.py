"""A model that keeps the batches it was given, and whether two runs were given the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from itmkit.data import Batch, ImageTextData


class Recorder(LightningModule):
    """Trains one number, and keeps all it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []
        self.judged: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return (self.weight - batch.images.features.mean() - batch.texts.ids.float().mean()) ** 2

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.judged += batch.image_ids.tolist()

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, data: ImageTextData, *, ckpt_path: str | None = None, **options: Any) -> Any:
    model = Recorder()
    every_step = ModelCheckpoint(
        folder / "saved", save_top_k=-1, every_n_train_steps=1, filename="{step}"
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[every_step],
        **options,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return model


def flat(batches: Any) -> list[Tensor]:
    return [
        part
        for batch in batches
        for part in (batch.images.features, batch.texts.ids, batch.text_ids, batch.image_ids)
    ]


def same(left: Any, right: Any) -> bool:
    left, right = flat(left), flat(right)
    return len(left) == len(right) > 0 and all(map(torch.equal, left, right))


def check_resumes(folder: Path, dataset: Callable[[str], Any]) -> None:
    """A fit of two epochs that goes on from its fourth step is the one that was not stopped."""

    def run(checkpoint: str | None = None) -> Any:
        data = ImageTextData(dataset, batch_size=5, vocabulary_min_count=1, caption_views=2)
        return fit(folder, data, ckpt_path=checkpoint, max_epochs=2)

    whole = run()
    assert len(whole.seen) == 12
    resumed = run(str(folder / "saved" / "step=4.ckpt"))
    assert same(resumed.seen, whole.seen[4:])
    assert torch.equal(resumed.weight, whole.weight)
