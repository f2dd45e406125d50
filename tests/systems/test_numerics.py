"""A training step of every system, in every precision and on every awkward batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from quiet_trainer import quiet_trainer
from systems import SYSTEMS, Case, dataset_of
from torch import Tensor

from itmkit.data import Batch, ImageTextData
from itmkit.data.dataset import ImageTextDataset

ALIKE = {"daim", "tvrn_four_regions"}  # the numbers of daim_levels and tvrn_saf_global
PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "32": lambda: {"precision": "32-true"},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    # As on a GPU: on the CPU, Lightning's own 16-mixed would be bf16. With a scale that it finds.
    "16-mixed": lambda: {
        "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256))]
    },
}


def captioned(
    split: str, *, case: Case, captions: list[str] | None, images: int
) -> ImageTextDataset:
    """The built-in images of a system, with captions that come again and again, or their own."""
    dataset = dataset_of(case, images)(split)
    if captions is not None:
        dataset.captions = [captions[i % len(captions)] for i in range(len(dataset.captions))]
    return dataset


BATCHES = {
    "six pairs": (6, None),
    "one pair": (1, None),
    "all captions equal": (6, ["a large red circle"]),
    "captions without a word": (6, ["", "a large red circle", "..."]),
    "no caption has a word": (6, [""]),
}


class Watch(Callback):
    """Keeps the terms of the loss and the gradients that the optimizer gets."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        loss = pl_module.loss

        def watched(batch: Batch) -> dict[str, Tensor]:
            self.terms: dict[str, Tensor] = loss(batch)
            return self.terms

        pl_module.loss = watched

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters()}
        self.gradients = {name: grad.clone() for name, grad in found.items() if grad is not None}


#: every awkward batch in fp32, and the two extremes in mixed precision; the others take long
CASES = [
    pytest.param(
        *(system, precision, batch),
        marks=[pytest.mark.long]
        * (precision != "32" and batch not in ("six pairs", "no caption has a word")),
    )
    for system in SYSTEMS
    if system not in ALIKE
    for precision in PRECISIONS
    for batch in BATCHES
]


@pytest.mark.parametrize(("system", "precision", "batch"), CASES)
def test_loss_and_gradients_are_finite(
    tmp_path: Path, system: str, precision: str, batch: str
) -> None:
    size, captions = BATCHES[batch]
    torch.manual_seed(0)
    matcher, watch = SYSTEMS[system].make(), Watch()
    if matcher.has_second_stage:
        matcher.rerank_top_k = 3
    data = ImageTextData(
        partial(captioned, case=SYSTEMS[system], captions=captions, images=12),
        batch_size=size,
        eval_batch_size=5,
        caption_views=SYSTEMS[system].views,
        vocabulary_min_count=1,
    )
    trainer = quiet_trainer(
        tmp_path, max_steps=1, val_check_interval=1, callbacks=[watch], **PRECISIONS[precision]()
    )
    trainer.fit(matcher, data)
    for term in watch.terms.values():
        assert term.dtype == torch.float32
        assert term.isfinite()
    assert watch.gradients
    for name, gradient in watch.gradients.items():
        assert gradient.isfinite().all(), name
    assert all(parameter.isfinite().all() for parameter in matcher.parameters())
    assert 0 <= trainer.callback_metrics["val/rsum"] <= 600
