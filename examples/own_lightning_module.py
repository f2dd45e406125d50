"""Losses, recall and a teacher of itmkit in a LightningModule of one's own.

Run: python examples/own_lightning_module.py
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from itmkit.callbacks import MomentumTeacher
from itmkit.losses import HECTLoss, MomentumDistillationLoss
from itmkit.metrics import CrossModalRecall


class TwoHeads(LightningModule):
    """Two heads on features of images and texts; batches are (image, text, ids)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(64, 32), nn.Linear(32, 32)
        self.hect, self.distil = HECTLoss(margin=1.0, temperature=0.5), MomentumDistillationLoss()
        self.recall = CrossModalRecall()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, text, ids = batch
        own = self.image(image), self.text(text)
        teacher = self.teacher.image(image), self.teacher.text(text)  # of the callback
        return self.hect(*own, image_ids=ids) + self.distil(*own, *teacher)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, text, ids = batch
        vectors = (nn.functional.normalize(v, dim=1) for v in (self.image(image), self.text(text)))
        self.recall.update(*vectors, ids, ids)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.recall.compute(), prog_bar=True)  # of all processes
        self.recall.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(**trainer: Any) -> dict[str, float]:
    seed_everything(0)
    cause = torch.randn(512, 16)
    images = cause @ torch.randn(16, 64) + 0.5 * torch.randn(512, 64)
    texts = cause @ torch.randn(16, 32) + 0.5 * torch.randn(512, 32)
    pairs = TensorDataset(images, texts, torch.arange(512))
    train, val = (Subset(pairs, rows) for rows in (range(400), range(400, 512)))
    runner = Trainer(max_epochs=20, callbacks=[MomentumTeacher(momentum=0.9)], **trainer)
    runner.fit(TwoHeads(), DataLoader(train, 80, shuffle=True), DataLoader(val, 56))
    return {name: float(value) for name, value in runner.callback_metrics.items()}


if __name__ == "__main__":
    main()
