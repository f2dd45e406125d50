from __future__ import annotations

import torch
from torch import Generator, Tensor

from itmkit.data.rival_groups import Relevance, Rivals, _captions_of, rival_groups

OWN = torch.arange(12).repeat_interleave(2)  # twelve images with two captions each


def relevance(images: Tensor, captions: Tensor) -> Tensor:
    return OWN[captions][None] == images[:, None]


def rivals() -> Rivals:
    """Every image is taken for the next two and for no others, for the next one more often."""
    images = torch.arange(12)
    near = torch.stack([(images + 1) % 12, (images + 2) % 12], 1)
    scores = torch.tensor([0.6, 0.5]).expand(12, 2)
    return Rivals((2 * near).int(), scores.half(), near[OWN].int(), scores[OWN].half())


def true_of_the_one_before(images: Tensor, captions: Tensor) -> Tensor:
    """A caption is true of its image and of the one before, whose captions are not true of it."""
    before = OWN[captions][None] == (images[:, None] + 1) % 12
    return relevance(images, captions) | before


def draw(
    seed: int = 0, *, size: int = 3, share: float = 0.0, true: Relevance = relevance
) -> Tensor:
    return rival_groups(
        rivals(),
        OWN,
        true,
        groups=24,
        size=size,
        temperature=0.05,
        random_share=torch.full((24,), share),
        generator=Generator().manual_seed(seed),
    )


def test_members_are_rivals_of_the_first() -> None:
    groups = draw()
    assert groups[:, 0].sort().values.tolist() == list(range(24))
    away = (OWN[groups[:, 1:]] - OWN[groups[:, :1]]) % 12
    assert (away.sort(1).values == torch.tensor([1, 2])).all()
    alone = (OWN[draw(size=2)[:, 1]] - OWN[draw(size=2)[:, 0]]) % 12
    assert (alone == 1).sum() > 2 * (alone == 2).sum()  # its score is twice the temperature more


def test_random_members_are_any() -> None:
    groups = draw(share=1.0)
    away = (OWN[groups[:, 1:]] - OWN[groups[:, :1]]) % 12
    assert (away > 2).float().mean() > 0.5


def test_nothing_in_a_group_is_true_of_another_member() -> None:
    for size in (2, 3, 5):
        for group in draw(size=size, share=0.3):
            assert len(set(OWN[group].tolist())) == size


def test_what_is_true_one_way_is_not_in_a_group() -> None:
    for size in (2, 3):
        for group in draw(size=size, share=0.3, true=true_of_the_one_before):
            true = true_of_the_one_before(OWN[group], group)
            assert torch.equal(true, torch.eye(size, dtype=torch.bool))


def test_same_seed_same_groups() -> None:
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_more_members_than_rivals_are_filled_at_random() -> None:
    groups = draw(size=8)
    assert groups.shape == (24, 8)
    assert ((groups >= 0) & (groups < 24)).all()


def test_images_without_captions_are_no_rivals() -> None:
    near = torch.tensor([[2, 12]])  # image 12 comes after the last one with a caption
    found = _captions_of(near, torch.tensor([1, 1, 2]), Generator().manual_seed(0))
    assert found.tolist() == [[2, -1]]
    found = _captions_of(torch.zeros(1, 2).long(), torch.tensor([1, 1]), Generator())
    assert found.tolist() == [[-1, -1]]
