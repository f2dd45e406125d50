"""Cosines of corrected vectors are CSLS, whatever their neighbours are."""

import pytest
import torch

from itmkit.checks import InputError
from itmkit.nn import HubnessCorrection, l2_normalize

DIM = 5


def vectors(count: int, seed: int) -> torch.Tensor:
    """Unit vectors on one side of the space, so that no correction is at its limit."""
    noise = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return l2_normalize(torch.ones(DIM) + noise)


def filled(size: int = 7, neighbours: int = 3) -> HubnessCorrection:
    correction = HubnessCorrection(size, neighbours=neighbours)
    correction.complete(DIM)
    correction.fill(vectors(size, 1), vectors(size, 2))
    return correction


def closeness(own: torch.Tensor, bank: torch.Tensor, neighbours: int) -> torch.Tensor:
    return torch.stack(
        [row.sort(descending=True).values[:neighbours].mean() for row in own @ bank.T]
    )


def test_scores_are_those_of_csls_but_for_a_constant_and_a_scale():
    correction = filled()
    image, text = vectors(4, 4), vectors(6, 6)
    own = closeness(image, vectors(7, 2), 3), closeness(text, vectors(7, 1), 3)
    expected = image @ text.T - own[0][:, None] / 2 - own[1] / 2
    centres = (
        closeness(vectors(7, 1), vectors(7, 2), 3).mean(),
        closeness(vectors(7, 2), vectors(7, 1), 3).mean(),
    )
    torch.testing.assert_close(torch.stack(centres), correction.centres)
    found = correction.image(image) @ correction.text(text).T
    torch.testing.assert_close(1.5 * found, expected + sum(centres) / 2)


def test_corrected_vectors_are_unit_vectors_with_the_others_in_them():
    correction, image = filled(), vectors(4, 4)
    for side in (correction.image, correction.text):
        corrected = side(image)
        assert corrected.shape == (4, DIM + 4)
        torch.testing.assert_close(corrected.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(correction.without(corrected), image)


def test_a_correction_has_a_limit():
    correction = filled()
    correction.centres.fill_(-1.0)  # all are far above it
    image, text = vectors(4, 4), vectors(6, 6)
    found = correction.image(image) @ correction.text(text).T
    torch.testing.assert_close(1.5 * found, image @ text.T - 0.5)
    torch.testing.assert_close(correction.image(image).norm(dim=1), torch.ones(4))


def test_an_empty_bank_corrects_nothing_and_missing_rows_are_at_a_cosine_of_zero():
    image, text = vectors(4, 4), vectors(6, 6)
    empty = HubnessCorrection(7, neighbours=3)
    empty.complete(DIM)
    torch.testing.assert_close(1.5 * empty.image(image) @ empty.text(text).T, image @ text.T)
    short = filled()
    short.fill(vectors(2, 1), vectors(2, 2))  # in place of the seven that were there
    bank = torch.cat([vectors(2, 2), torch.zeros(5, DIM)])
    expected = closeness(vectors(2, 1), bank, 3).mean()
    torch.testing.assert_close(short.centres[0], expected)


@pytest.mark.parametrize("count", [7, 4], ids=["full", "rows missing"])
def test_a_bank_serves_another_number_of_neighbours(count):
    """The centres that are loaded are those of the number that they are loaded for."""
    one, other = (HubnessCorrection(7, neighbours=number) for number in (3, 2))
    for correction in (one, other):
        correction.complete(DIM)
        correction.fill(vectors(count, 1), vectors(count, 2))
    assert (other.centres > one.centres + 0.01).all()
    loaded = HubnessCorrection(7, neighbours=2)
    loaded.complete(DIM)
    loaded.load_state_dict(one.state_dict())
    torch.testing.assert_close(loaded.state_dict(), other.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_state_dict_round_trip_changes_nothing_after_a_cast(dtype):
    state = filled().to(dtype).state_dict()
    loaded = HubnessCorrection(7, neighbours=3)
    loaded.complete(DIM)
    loaded.to(dtype).load_state_dict(state)
    torch.testing.assert_close(loaded.state_dict(), state, atol=0, rtol=0)


def test_a_hub_loses_its_place():
    """An image that is closest to every caption is found by its own one alone."""
    axes = torch.eye(DIM)
    hub = l2_normalize(torch.full((1, DIM), 1.0))
    captions = l2_normalize(0.8 * axes[:4] + hub)  # each closer to the hub than to its image
    images = torch.cat([axes[:4], hub])
    assert (images @ captions.T).argmax(0).tolist() == [4] * 4
    correction = HubnessCorrection(4, neighbours=2)
    correction.complete(DIM)
    correction.fill(axes[:4], captions)
    scores = correction.image(images) @ correction.text(captions).T
    assert scores.argmax(0).tolist() == [0, 1, 2, 3]


def test_no_gradient_goes_through_the_correction():
    image = vectors(4, 4).requires_grad_()
    correction = filled()
    (correction.image(image) @ correction.text(vectors(6, 6)).T).sum().backward()
    expected = vectors(6, 6).sum(0).expand(4, DIM) / 1.5
    torch.testing.assert_close(image.grad, expected)


def test_half_precision_corrects_in_float32():
    correction, image = filled(), vectors(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(correction.image(image), filled().image(image))


def test_errors():
    with pytest.raises(InputError, match=r"neighbours is 8; expected at most 7, as size"):
        HubnessCorrection(7, neighbours=8)
    with pytest.raises(InputError, match="size is 0"):
        HubnessCorrection(0)
    with pytest.raises(InputError, match="vectors has the shape"):
        filled().fill(torch.eye(3), torch.eye(3))
    for side in (filled().image, filled().text):
        with pytest.raises(InputError, match=r"vectors has the shape \(3, 3\); expected \(3, 5\)"):
            side(torch.eye(3))
