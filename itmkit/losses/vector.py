"""Any loss of scores as a loss of vectors, whose cosines need not be held at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from itmkit.checks import check_pairs, integer_vector
from itmkit.losses.kind import check_kind
from itmkit.losses.scores import Costs, Rows, ScoreLoss, check_groups, reduced
from itmkit.losses.tiles import WHOLE, Candidates, sums_of_costs, tiles, uncompiled
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize


class VectorLoss(nn.Module):
    r"""Any loss of scores as a loss of vectors: it gets the cosines of all pairs.

    .. math::

        L(v, t) = L\big(\hat v \hat t^\top\big)

    A large batch is computed in tiles of rows, and once more in backward, so that the cosines are
    never held at once: memory beside vectors and gradients does not grow with their number.
    Values and gradients are those of the whole matrix. A loss that is no
    :class:`~itmkit.losses.ScoreLoss` always gets the whole matrix.

    Args:
        loss: of ``(scores, positives)``; one that expects cosines.

    Shape:
        image, text ``(n, D)``, row i of the one belonging to row i of the other, image_ids ``(n,)``
        or None → ``()``. The ids say the image of each row, as integers in a tensor, a list or an
        array: rows of one image are true pairs. None: all are different.

    Raises:
        InputError: for a loss of anything else; in use, a wrong type or shape.

    Example:
        >>> from itmkit.losses import InfoNCELoss
        >>> _ = torch.manual_seed(0)
        >>> VectorLoss(InfoNCELoss())(torch.randn(4, 8), torch.randn(4, 8))
        tensor(10.2700)
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        check_kind("scores", loss=loss)
        self.loss = loss

    def forward(self, image: Tensor, text: Tensor, image_ids: Tensor | None = None) -> Tensor:
        """The loss of n pairs."""
        check_pairs(image=image, text=text)
        if image_ids is not None:
            image_ids = integer_vector("image_ids", image_ids, len(image), image.device)
        image, text = at_least_float32(image), at_least_float32(text)
        if isinstance(self.loss, ScoreLoss) and len(image) * len(text) > WHOLE:
            check_groups((len(image), len(text)), self.loss.group_size)
            return _in_tiles(self.loss, image, text, image_ids)
        positives = None if image_ids is None else image_ids[:, None] == image_ids
        with autocast_off(image):
            scores = l2_normalize(image) @ l2_normalize(text).T
        loss: Tensor = self.loss(scores, positives)
        return loss


@uncompiled
def _in_tiles(loss: ScoreLoss, image: Tensor, text: Tensor, image_ids: Tensor | None) -> Tensor:
    def rows_of(scores: Tensor, rows: slice) -> Rows:
        positives = None if image_ids is None else image_ids[rows, None] == image_ids
        return Rows(scores, positives, rows.start)

    def costs(scores: Tensor, rows: slice) -> Costs:
        return loss.costs(rows_of(scores, rows))

    @torch.no_grad()
    def all_rows() -> Iterator[Rows]:
        with autocast_off(image):
            candidates = Candidates(text.detach())
            for rows in tiles(len(image), len(text), loss.group_size):
                yield rows_of(candidates.cosines(image[rows].detach()), rows)

    loss.observe(all_rows())
    parameters = [one for one in loss.parameters() if one.requires_grad]
    directions = [(0, [1]), (1, [0])][: loss.directions]
    found = sums_of_costs(costs, [image, text], directions, parameters, multiple=loss.group_size)
    return torch.stack([reduced(one, loss.reduction) for one in found]).sum()
