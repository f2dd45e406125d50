"""The bank of a :class:`itmkit.nn.HubnessCorrection`, filled from the training split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.plugins import Precision
from torch import Tensor

from itmkit._internals import data_module_of
from itmkit.checks import InputError, type_of
from itmkit.chunks import evenly_spaced
from itmkit.data import ImageTextData
from itmkit.data.order import mixed_seed, seeded
from itmkit.nn import HubnessCorrection
from itmkit.retrieval import encode

if TYPE_CHECKING:
    from itmkit.systems.matcher import Matcher


class BankFilling:
    """Fills the bank of a system's correction, if it has one, once after a batch of a fit.

    Not once in a step: batches whose gradients are accumulated change running statistics.
    """

    def __init__(self) -> None:
        self._filled_after: int | None = None  # how many batches of the fit

    def fill(self, matcher: Matcher) -> None:
        """Fill it, unless that was done after the last batch."""
        correction, trainer = matcher.hubness_correction, matcher.trainer
        batches = trainer.fit_loop.total_batch_idx
        if correction is None or self._filled_after == batches:
            return
        data = bank_data(data_module_of(trainer))
        fill_bank(matcher, correction, data, trainer.precision_plugin)
        self._filled_after = batches


def bank_data(data: object) -> ImageTextData:
    """The data, if a bank can be filled from it.

    Raises:
        InputError: it has no split to read again.
    """
    if not isinstance(data, ImageTextData):
        raise InputError(
            f"data is {type_of(data)}; expected ImageTextData, whose training split "
            "hubness_correction reads again"
        )
    return data


def fill_bank(
    matcher: Matcher,
    correction: HubnessCorrection,
    data: ImageTextData,
    precision: Precision | None = None,
) -> None:
    """Encode images that are trained on, evenly spaced, and the first caption of each.

    What is excluded from training is left out. Every process does the same, whenever it is done.

    Args:
        matcher: makes the vectors, corrected by what is in the bank so far.
        correction: with the bank.
        data: what the matcher is trained on.
        precision: that it is evaluated in; None: as it is.
    """
    precision = precision or Precision()
    rows, captions = _bank_rows(data, correction.size)
    images, texts = [], []
    # seeded: a dataset may draw its images at random, and training draws from the same generators
    with seeded(mixed_seed(data.seed)), precision.forward_context():
        for batch in data.evaluation_dataloader(data.train_split, rows=rows):
            own = torch.isin(batch.text_ids, captions)
            part = replace(
                batch,
                texts=batch.texts.rows(own),
                text_image_ids=batch.text_image_ids[own],
                text_ids=batch.text_ids[own],
            )
            found = encode(matcher, [precision.convert_input(part)], matcher.device)
            images.append(matcher.uncorrected(found.images.vector))
            texts.append(matcher.uncorrected(found.texts.vector))
    correction.fill(torch.cat(images), torch.cat(texts))


def _bank_rows(data: ImageTextData, size: int) -> tuple[list[int], Tensor]:
    """Rows of at most so many images that are trained on; the first caption of every image."""
    kept = data.training_captions
    owners, order = data.split(data.train_split).caption_images[kept].sort(stable=True)
    images, counts = owners.unique_consecutive(return_counts=True)
    first = kept[order[counts.cumsum(0) - counts]]
    return images[evenly_spaced(len(images), size)].tolist(), first
