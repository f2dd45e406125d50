"""Training rows in groups of pairs that are easily taken for each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_ROUNDS = 20  # of replacing what is true of another member of its group

Relevance = Callable[[Tensor, Tensor], Tensor]
"""Which captions are true of which images: rows ``(n,)`` and ``(m,)`` → bool ``(n, m)``."""


@dataclass
class Rivals:
    """The wrong captions of every image, and the wrong images of every caption, most like it.

    Args:
        captions: ``(n, k)`` int32, rows of captions; -1 where there are no more.
        caption_scores: ``(n, k)`` fp16, their scores.
        images: ``(m, k)`` int32, rows of images; -1 where there are no more.
        image_scores: ``(m, k)`` fp16, their scores.
    """

    captions: Tensor
    caption_scores: Tensor
    images: Tensor
    image_scores: Tensor


def rival_groups(
    rivals: Rivals,
    caption_images: Tensor,
    relevance: Relevance,
    *,
    groups: int,
    size: int,
    temperature: float,
    random_share: Tensor,
    generator: Generator,
) -> Tensor:
    """Draw groups of captions, each with its image, that are hard to tell apart.

    A group starts with a caption of its own, no two groups with the same. The other members are
    captions that its image is taken for, and captions of images that it is taken for, of different
    images, drawn with a probability in proportion to ``exp(score / temperature)``. So in a group
    every image and every caption is right once and wrong for all others: nothing is learnt from how
    often an image is among the negatives. No caption of a group is true of the image of another
    member.

    Args:
        rivals: of all images and captions.
        caption_images: ``(m,)`` int64, the image of every caption.
        relevance: which captions are true of which images.
        groups: how many, at most m.
        size: members of a group.
        temperature: above 0; the smaller, the more of the hardest.
        random_share: ``(groups,)``, the probability of a member of the group to be any caption.
        generator: of all that is drawn.

    Returns:
        ``(groups, size)`` int64, rows of captions.
    """
    m = len(caption_images)
    first = torch.randperm(m, generator=generator)[:groups]
    own = caption_images[first]
    pool = torch.cat(
        [
            rivals.captions[own].long(),
            _captions_of(rivals.images[first].long(), caption_images, generator),
        ],
        dim=1,
    )
    scores = torch.cat([rivals.caption_scores[own], rivals.image_scores[first]], dim=1)
    drawn = _drawn(pool, scores, own, caption_images, size - 1, temperature, generator)
    members = torch.cat([first[:, None], drawn], dim=1)

    def replace(which: Tensor) -> None:
        members[which] = torch.randint(m, (int(which.sum()),), generator=generator)

    anywhere = torch.rand(groups, size - 1, generator=generator) < random_share[:, None]
    replace(F.pad(anywhere, (1, 0)) | (members < 0))
    for _ in range(_ROUNDS):
        clash = _true_of_others(members, caption_images, relevance)
        if not clash.any():
            break
        replace(clash)
    return members


def _drawn(
    pool: Tensor,
    scores: Tensor,
    own: Tensor,
    caption_images: Tensor,
    count: int,
    temperature: float,
    generator: Generator,
) -> Tensor:
    """Captions of each row of a pool ``(g, p)``, of images that all differ; -1 where too few do.

    Drawn in proportion to exp(score / temperature); ``own`` ``(g,)`` is an image to leave out.
    """
    # Gumbel's trick: the largest of log weights plus this noise are such a draw.
    uniform = torch.rand(pool.shape, generator=generator).clamp(min=1e-12)
    keys = scores.float() / temperature - (-uniform.log()).log()
    keys, order = keys.masked_fill(pool < 0, -torch.inf).sort(dim=1, descending=True)
    pool = pool.gather(1, order)
    images = caption_images[pool.clamp(min=0)]
    seen = torch.stack([row[:, None] == row for row in images]).tril(-1).any(2)
    keys = keys.masked_fill(seen | (images == own[:, None]), -torch.inf)
    keys, places = keys.topk(min(count, keys.shape[1]), dim=1)
    chosen = pool.gather(1, places).where(keys > -torch.inf, -1)
    return F.pad(chosen, (0, count - chosen.shape[1]), value=-1)


def _captions_of(images: Tensor, caption_images: Tensor, generator: Generator) -> Tensor:
    """A caption of each image, drawn; -1 for the image -1, and where it has none."""
    order = caption_images.argsort(stable=True)
    counts = caption_images.bincount(minlength=int(images.max()) + 1)
    starts = counts.cumsum(0) - counts
    known = images.clamp(min=0)
    has_some = (images >= 0) & (counts[known] > 0)
    which = (torch.rand(images.shape, generator=generator) * counts[known]).long()
    return order[(starts[known] + which).where(has_some, 0)].where(has_some, -1)


def _true_of_others(members: Tensor, caption_images: Tensor, relevance: Relevance) -> Tensor:
    """Bool ``(groups, size)``: members that share a true pair with one before them."""
    groups, size = members.shape
    clash = torch.zeros(groups, size, size, dtype=torch.bool)
    for part in torch.arange(groups).split(max(1, 256 // size)):
        rows = members[part].flatten()
        pairs = relevance(caption_images[rows], rows).view(len(part), size, len(part), size)
        clash[part] = pairs.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return (clash | clash.mT).tril(-1).any(dim=2)
