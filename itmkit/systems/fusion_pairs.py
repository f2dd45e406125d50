"""Which pairs of a batch a second stage is trained on, and which of them a loss compares.

Both functions give the pairs ``(p, 2)``, rows of an image and of a caption, and ``(a, G)``: for
each of a comparisons, which of the pairs it is of. Row i of the images belongs to row i of the
captions; ``most`` pairs, spread evenly, are compared with others, None for all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hardest_pairs(scores: Tensor, ids: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Each true pair beside its image, and beside its caption, with what is most like a match.

    Args:
        scores: ``(n, n)`` of the first stage.
        ids: ``(n,)`` images of the rows; those of one image are not negatives of each other.
        most: see above.

    Returns:
        Where all captions are of one image, what is taken for a wrong pair is a true one.

    Example:
        >>> scores = torch.tensor([[9.0, 2.0, 3.0], [5.0, 9.0, 4.0], [1.0, 6.0, 9.0]])
        >>> pairs, compared = hardest_pairs(scores, torch.arange(3), most=1)
        >>> pairs[compared].tolist()
        [[[0, 0], [0, 2]], [[0, 0], [1, 0]]]
    """
    wrong = scores.detach().masked_fill(ids[:, None] == ids, -torch.inf)
    anchors = _spread(len(wrong), most, wrong.device)
    text, image = wrong.argmax(dim=1)[anchors], wrong.argmax(dim=0)[anchors]
    pairs = [torch.cat([anchors, anchors, image]), torch.cat([anchors, text, anchors])]
    true, *others = torch.arange(3 * len(anchors), device=wrong.device).chunk(3)
    return torch.stack(pairs, dim=1), torch.stack([true.repeat(2), torch.cat(others)], dim=1)


def pairs_of_groups(ids: Tensor, size: int, most: int | None) -> tuple[Tensor, Tensor]:
    """All pairs of each group of ``size`` adjacent rows: those of an image, then of a caption.

    Args:
        ids: ``(n,)``, n a multiple of the size.
        size: G, rows of a group.
        most: see above; at least one group.

    Example:
        >>> pairs, compared = pairs_of_groups(torch.arange(4), 2, most=2)
        >>> pairs[compared].tolist()
        [[[0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]]]
    """
    rows = torch.arange(len(ids), device=ids.device).view(-1, size)
    rows = rows[_spread(len(rows), most and max(1, most // size), ids.device)]
    pairs = torch.stack(torch.broadcast_tensors(rows[:, :, None], rows[:, None]), dim=-1)
    places = torch.arange(rows.numel() * size, device=ids.device).view(-1, size, size)
    return pairs.reshape(-1, 2), torch.cat([places, places.mT]).flatten(0, 1)


def _spread(n: int, most: int | None, device: torch.device) -> Tensor:
    count = min(n, most or n)
    return torch.arange(count, device=device) * n // count
