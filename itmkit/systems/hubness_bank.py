"""The bank of a :class:`itmkit.nn.HubnessCorrection`, filled from the training split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from itmkit.checks import InputError, type_of
from itmkit.data import ImageTextData
from itmkit.nn import HubnessCorrection
from itmkit.retrieval import encode

if TYPE_CHECKING:
    from itmkit.systems.matcher import Matcher


def fill_bank(matcher: Matcher, correction: HubnessCorrection, data: object) -> None:
    """Encode images of the training split, evenly spaced, and the first caption of each.

    Every process does the same.

    Args:
        matcher: makes the vectors, corrected by what is in the bank so far.
        correction: with the bank.
        data: what the matcher is trained on.

    Raises:
        InputError: data that has no split to read again.
    """
    if not isinstance(data, ImageTextData):
        raise InputError(
            f"hubness_correction reads the training split again, of ImageTextData; got "
            f"{type_of(data)}"
        )
    images, texts = [], []
    for batch in data.evaluation_dataloader(data.train_split, most=correction.size):
        owners = batch.text_image_ids
        first = torch.cat([owners[:1] == owners[:1], owners[1:] != owners[:-1]])
        part = replace(
            batch,
            texts=batch.texts.rows(first),
            text_image_ids=owners[first],
            text_ids=batch.text_ids[first],
        )
        found = encode(matcher, [part], matcher.device)
        images.append(matcher.uncorrected(found.images.vector))
        texts.append(matcher.uncorrected(found.texts.vector))
    correction.fill(torch.cat(images), torch.cat(texts))
