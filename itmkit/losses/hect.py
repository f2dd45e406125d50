"""HECT: hard enhanced contrastive triplet loss, with negatives of both modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import (
    InputError,
    check_bool,
    check_choice,
    check_count,
    check_floating,
    check_non_negative,
    check_pairs,
    check_positive,
    integer_vector,
)
from itmkit.losses.scores import Costs, Reduction, reduced
from itmkit.losses.tiles import WHOLE, Candidates, pair_cosines, tiles, uncompiled
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize

_FEW = 8  # hard negatives up to which the loss is faster that way


def hect_from_similarities(
    positive: Tensor,
    negatives: Tensor,
    valid: Tensor | None = None,
    *,
    margin: float = 1.0,
    temperature: float = 0.5,
    contrastive_weight: float = 0.5,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""HECT loss of anchors whose positive and hard negatives are already found.

    .. math::

        L = \operatorname*{mean}_a [d(s_a^+) - d(\max_j s_{aj}^-) + m]_+ + \lambda
            \operatorname*{mean}_a -\log \frac{e^{s_a^+/\tau}}{\sum_j e^{s_{aj}^-/\tau}}, \qquad
            d(s) = \sqrt{2 - 2s}

    The mean is over the anchors that have a negative. The positive is not in the denominator, so
    the loss may be below zero. Where d is below 1e-6, its slope is taken as 0. The numbers are
    those of :class:`HECTLoss`.

    Args:
        positive: cosine of each anchor and its positive, in [-1, 1].
        negatives: cosines of each anchor and its hard negatives, in any order; all columns count.
        valid: bool, which negatives exist; None for all of them. The others may hold anything.
        margin: of the triplet part, in Euclidean distance of unit vectors; at least 0.
        temperature: of the contrastive part, above 0.
        contrastive_weight: weight λ of the contrastive part, at least 0.
        reduction: ``"mean"`` over the anchors that have a negative, or their ``"sum"``.

    Shape:
        positive: ``(a,)``; negatives, valid: ``(a, k)``; result: ``()``.

    Returns:
        The loss, in float32 (float64 for float64 input); zero, with a graph, without any negative.

    Raises:
        InputError: for a wrong shape or dtype, or a number out of its range.

    Example:
        >>> hect_from_similarities(torch.tensor([1.0]), torch.tensor([[0.5]]), margin=1.5)
        tensor(0.)
    """
    check_non_negative(margin=margin, contrastive_weight=contrastive_weight)
    check_positive(temperature=temperature)
    check_choice("reduction", reduction, Reduction)
    check_floating("(a, ...)", positive=positive, negatives=negatives)
    if positive.dim() != 1 or negatives.dim() != 2 or len(negatives) != len(positive):
        raise InputError(
            f"positive, negatives have the shapes {tuple(positive.shape)} and "
            f"{tuple(negatives.shape)}; expected (a,) and (a, k)"
        )
    if valid is None:
        valid = torch.ones_like(negatives, dtype=torch.bool)
    check_bool(tuple(negatives.shape), negatives.device, valid=valid)
    positive, negatives = at_least_float32(positive), at_least_float32(negatives)
    if negatives.shape[1] == 0:
        return (positive * 0).sum() + negatives.sum()
    with autocast_off(positive):
        counted = valid.any(dim=1)
        # An anchor without negatives gets finite stand-ins, so that its gradient is 0 and not NaN.
        negatives = negatives.masked_fill(~valid, -torch.inf).masked_fill(~counted[:, None], 0)
        triplet = (_distance(positive) - _distance(negatives.amax(dim=1)) + margin).relu()
        contrast = (negatives / temperature).logsumexp(dim=1) - positive / temperature
        costs = triplet + contrastive_weight * contrast
        return reduced(Costs(costs.where(counted, 0).sum(), counted.sum()), reduction)


def hect_loss(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None = None,
    *,
    margin: float = 1.0,
    temperature: float = 0.5,
    num_hard_negatives: int = 1,
    contrastive_weight: float = 0.5,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of n image and n text vectors; formula and arguments: :class:`HECTLoss`."""
    check_count(num_hard_negatives=num_hard_negatives)
    check_pairs(image=image, text=text)
    if image_ids is None:
        image_ids = torch.arange(len(image), device=image.device)
    image_ids = integer_vector("image_ids", image_ids, len(image), image.device)
    ids, k = image_ids.repeat(2), min(num_hard_negatives, 2 * len(image))
    image, text = at_least_float32(image), at_least_float32(text)
    if len(ids) ** 2 > WHOLE:
        positive, negatives, valid = _mined_in_tiles(image, text, ids, k)
    else:
        positive, negatives, valid = _mined(image, text, ids, k)
    return hect_from_similarities(
        positive,
        negatives,
        valid,
        margin=margin,
        temperature=temperature,
        contrastive_weight=contrastive_weight,
        reduction=reduction,
    )


def _mined(image: Tensor, text: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of 2n anchors: positive ``(2n,)``, k hardest negatives, and which of these exist."""
    with autocast_off(image):
        z = l2_normalize(torch.cat([image, text]))
        # Where few products are picked, gradients flow through these, not through all.
        few = 0 < k <= _FEW
        similarities = z.detach() @ z.detach().T if few else z @ z.T
        # The anchor itself and its partner share its image id, so they are excluded with the rest.
        candidates = similarities.masked_fill(ids[:, None] == ids, -torch.inf)
        negatives, rows = candidates.topk(k, dim=1)
        valid = negatives > -torch.inf
        if few:
            negatives = torch.stack([(z * z.index_select(0, row)).sum(1) for row in rows.T], dim=1)
        first, second = z.chunk(2)
        positive = (first * second).sum(dim=1).repeat(2)
    return positive, negatives, valid


@uncompiled
def _mined_in_tiles(
    image: Tensor, text: Tensor, ids: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where the cosines of all are too many to be held."""
    n = len(image)
    # Written into: small tensors that stay between freed tiles would keep their memory from reuse.
    values = image.new_empty(2 * n, k)
    hardest = torch.empty(2 * n, k, dtype=torch.long, device=image.device)
    with torch.no_grad(), autocast_off(image):
        candidates = Candidates(image, text)
        for first, side in ((0, image), (n, text)):
            for rows in tiles(n, 2 * n):
                cosines = candidates.cosines(side[rows])
                own = slice(first + rows.start, first + rows.stop)
                cosines.masked_fill_(ids[own, None] == ids, -torch.inf)
                found = cosines.max(1, keepdim=True) if k == 1 else cosines.topk(k, dim=1)
                values[own], hardest[own] = found
                del cosines, found
    anchors = torch.arange(2 * n, device=image.device)
    places = torch.cat([anchors[:n], anchors.repeat_interleave(k)])
    positive, negatives = pair_cosines(
        image, text, places, torch.cat([anchors[n:], hardest.flatten()])
    ).split([n, 2 * n * k])
    return positive.repeat(2), negatives.reshape(2 * n, k), values > -torch.inf


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of two unit vectors; its slope is 0 where they are closer than 1e-6."""
    squared = 2 - 2 * similarity.clamp(-1, 1)
    apart = squared > 1e-12  # in float64, else the slope could reach 1e8
    return squared.where(apart, 1).sqrt().where(apart, 0)


class HECTLoss(nn.Module):
    r"""Hard enhanced contrastive triplet loss of n image vectors and their n text vectors.

    .. math::

        z = [\hat{image}; \hat{text}], \quad S = z z^\top, \quad
        s_a^+ = S_{a,\,(a+n) \bmod 2n}, \quad
        s_a^- = \text{the } k \text{ largest } S_{ab} \text{ with } id(b) \ne id(a)

        L = \operatorname*{mean}_a [d(s_a^+) - d(\max_j s_{aj}^-) + m]_+ + \lambda
            \operatorname*{mean}_a -\log \frac{e^{s_a^+/\tau}}{\sum_j e^{s_{aj}^-/\tau}}, \qquad
            d(s) = \sqrt{2 - 2s}

    over the 2n anchors: an image may meet its hardest negative among images as well as among texts.
    An anchor with fewer than k negatives uses what it has, one without any is left out of the mean.
    The positive is not in the denominator, so the loss may be below zero. Takes vectors of any
    length: they are l2-normalised here.

    MATE's loss. Differs from the released code: that reads the positives from a wrong diagonal and
    holds for a batch of 128 only.

    Args:
        margin: m of the triplet part, in Euclidean distance of unit vectors, which is at most 2; at
            least 0.
        temperature: τ of the contrastive part, above 0; the cosines are divided by it.
        num_hard_negatives: k, how many of an anchor's most similar negatives count; at least 1.
        contrastive_weight: weight λ of the contrastive part, at least 0.
        reduction: ``"mean"`` over the anchors that have a negative, or their ``"sum"``.

    Shape:
        image, text ``(n, D)``, row i of the one belonging to row i of the other, image_ids ``(n,)``
        or None → ``()``. The ids say the image of each row, as integers in a tensor, a list or an
        array: rows of one image are not negatives of each other. None: all are different.

    Raises:
        InputError: for a number out of its range; in use, a wrong type or shape.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loss = HECTLoss()
        >>> loss(torch.randn(4, 8), torch.randn(4, 8), torch.tensor([3, 3, 5, 8]))
        tensor(2.0809)
    """

    def __init__(
        self,
        margin: float = 1.0,
        temperature: float = 0.5,
        num_hard_negatives: int = 1,
        contrastive_weight: float = 0.5,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_non_negative(margin=margin, contrastive_weight=contrastive_weight)
        check_positive(temperature=temperature)
        check_count(num_hard_negatives=num_hard_negatives)
        check_choice("reduction", reduction, Reduction)
        self.margin = margin
        self.temperature = temperature
        self.num_hard_negatives = num_hard_negatives
        self.contrastive_weight = contrastive_weight
        self.reduction: Reduction = reduction

    def forward(self, image: Tensor, text: Tensor, image_ids: Tensor | None = None) -> Tensor:
        """The loss of n pairs, hard negatives mined among all 2n rows."""
        return hect_loss(
            image,
            text,
            image_ids,
            margin=self.margin,
            temperature=self.temperature,
            num_hard_negatives=self.num_hard_negatives,
            contrastive_weight=self.contrastive_weight,
            reduction=self.reduction,
        )

    def from_similarities(
        self, positive: Tensor, negatives: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The loss of anchors whose hard negatives are picked: :func:`hect_from_similarities`."""
        return hect_from_similarities(
            positive,
            negatives,
            valid,
            margin=self.margin,
            temperature=self.temperature,
            contrastive_weight=self.contrastive_weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, temperature={self.temperature}, "
            f"num_hard_negatives={self.num_hard_negatives}, "
            f"contrastive_weight={self.contrastive_weight}, reduction={self.reduction!r}"
        )
