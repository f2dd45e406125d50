"""Training pairs ranked by suspected mismatch: two models, each judging what the other learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from itmkit.checks import InputError, check_seed
from itmkit.data import ImageTextData
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.table import write_table
from itmkit.files import user_path
from itmkit.retrieval import Gallery, encode, evaluating, score_matrix
from itmkit.systems import Matcher

Fit = Callable[[Path], tuple[Matcher, ImageTextData]]
_REFERENCES = 1000  # images, and captions, that a pair is compared with
_BLOCK = 64  # images


class Suspect(NamedTuple):
    """A caption of the training split, and how badly it fits its image.

    Args:
        caption: its row.
        score: how many standard deviations its score with its own image lies above those of the
            caption with other images and of the image with other captions, on average; the lower,
            the more it is suspected.
        probability: that it belongs to another image, by a mixture of two normal distributions of
            all scores.
    """

    caption: int
    score: float
    probability: float


def rank_mismatches(
    fit: Fit, data: ImageTextData, folder: str | Path, *, seed: int = 0
) -> list[Suspect]:
    """Rank the captions that are trained on by how badly they fit their images, worst first.

    The images are dealt into two halves, a model is trained on each, and judges the pairs of the
    other half, which it has not seen: what is learnt by heart looks right.

    Args:
        fit: trains a model on what a list leaves, for ``ImageTextData(exclude=…)``, and gives it
            with its data, whose words are the model's. It is called twice, with ``without-1.csv``
            and ``without-2.csv`` in ``folder``.
        data: the data that it trains on, without such a list.
        folder: where these lists are written.
        seed: of the halves, and of the images and captions that pairs are compared with.

    Returns:
        One :class:`Suspect` a caption.

    Raises:
        InputError: the split has fewer than 4 images with captions.
    """
    check_seed(seed=seed)
    dataset = data.split(data.train_split)
    generator = Generator().manual_seed(seed)
    rows = data.training_captions
    images = dataset.caption_images[rows].unique()
    if len(images) < 4:
        raise InputError(f"{len(images)} images have captions; expected 4 or more, for two halves")
    halves = images[torch.randperm(len(images), generator=generator)].tensor_split(2)
    scores = torch.empty(len(dataset.captions), dtype=torch.float64)
    for number, half in enumerate(halves, 1):
        unseen = rows[torch.isin(dataset.caption_images[rows], half)]
        excluded = torch.ones(len(dataset.captions), dtype=torch.bool)
        excluded[rows[~torch.isin(rows, unseen)]] = False
        model, own = fit(
            _write_list(user_path(folder) / f"without-{number}.csv", dataset, excluded)
        )
        gallery = encode(model, own.evaluation_dataloader(own.train_split))
        part = gallery.part(
            torch.isin(gallery.image_ids, half).nonzero()[:, 0],
            torch.isin(gallery.text_ids, unseen).nonzero()[:, 0],
        )
        scores[part.text_ids] = pair_margins(model, part, generator).double()
    found = scores[rows]
    chances = mismatch_probability(found)
    order = found.argsort()
    columns = (rows[order].tolist(), found[order].tolist(), chances[order].tolist())
    return [Suspect(*one) for one in zip(*columns, strict=True)]


def pair_margins(model: Matcher, gallery: Gallery, generator: Generator) -> Tensor:
    """How far the score of every caption with its own image stands out, ``(m,)``.

    In standard deviations above the scores of the caption with at most 1,000 images drawn at
    random, and above those of the image with as many captions; the mean of both.
    """
    n, m = len(gallery.image_ids), len(gallery.text_ids)
    order = gallery.image_ids.argsort()
    owners = order[torch.searchsorted(gallery.image_ids[order], gallery.text_image_ids)]
    images, captions = (
        torch.randperm(count, generator=generator)[:_REFERENCES] for count in (n, m)
    )
    with_images = score_matrix(model, gallery.images[images], gallery.texts)
    with_captions = score_matrix(model, gallery.images, gallery.texts[captions])
    own = _own_scores(model, gallery, owners)
    by_caption = (own - with_images.mean(0)) / with_images.std(0).clamp(min=1e-6)
    by_image = own - with_captions.mean(1)[owners]
    by_image /= with_captions.std(1).clamp(min=1e-6)[owners]
    return (by_caption + by_image) / 2


def _own_scores(model: Matcher, gallery: Gallery, owners: Tensor) -> Tensor:
    """The score of every caption with the image in the row ``owners``."""
    own = torch.empty(len(owners))
    with evaluating(model):
        for rows in torch.arange(len(gallery.image_ids)).split(_BLOCK):
            columns = torch.isin(owners, rows).nonzero()[:, 0]
            if not len(columns):
                continue
            images = gallery.images[rows].to(model.device)
            block = model.score(images, gallery.texts[columns].to(model.device)).float().cpu()
            own[columns] = block[owners[columns] - rows[0], torch.arange(len(columns))]
    return own


def mismatch_probability(scores: Tensor, *, steps: int = 100) -> Tensor:
    """The probability of each score ``(m,)`` to be of the lower of two normal distributions.

    Both are fitted to all scores by expectation and maximisation. 0 above the mean of the higher.

    Example:
        >>> scores = torch.cat([torch.randn(100), 8 + torch.randn(400)])
        >>> (mismatch_probability(scores) > 0.5).sum().item() in range(98, 103)
        True
    """
    scores = scores.double()
    means = torch.quantile(scores, torch.tensor([0.1, 0.7], dtype=torch.float64))
    spreads = scores.std().clamp(min=1e-6).repeat(2) / 2
    shares = torch.tensor([0.2, 0.8], dtype=torch.float64)
    for _ in range(steps):
        logits = shares.log() - spreads.log() - ((scores[:, None] - means) / spreads) ** 2 / 2
        parts = logits.softmax(1)
        weights = parts.sum(0).clamp(min=1e-9)
        means = (parts * scores[:, None]).sum(0) / weights
        spread = (parts * (scores[:, None] - means) ** 2).sum(0) / weights
        spreads, shares = spread.sqrt().clamp(min=1e-6), weights / len(scores)
    low, high = means.argsort().tolist()
    return parts[:, low].masked_fill(scores >= means[high], 0.0).float()


def _write_list(path: Path, dataset: ImageTextDataset, excluded: Tensor) -> Path:
    """Write the captions that a bool ``(m,)`` marks as a list for ``ImageTextData(exclude=…)``."""
    rows = excluded.nonzero()[:, 0]
    images = (dataset.names[row] for row in dataset.caption_images[rows].tolist())
    captions = (dataset.captions[row] for row in rows.tolist())
    write_table(path, ("image", "caption"), zip(images, captions, strict=True))
    return path
