from __future__ import annotations

import torch
from score_table import Table, gallery

from itmkit.retrieval import best_captions, evaluate, fit_second_stage
from itmkit.retrieval.blend import blend


def test_standardised_order_is_that_of_z_scores() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(6, 8), 50 * torch.randn(6, 8) - 100

    def z(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)

    found = blend(first, second, 0.4, standardised=True)
    expected = 0.6 * z(first) + 0.4 * z(second)
    torch.testing.assert_close(z(found), z(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean(1), first.mean(1))


def test_neither_scale_nor_offset_of_pair_scores_counts() -> None:
    first, second = torch.rand(4, 5), torch.randn(4, 5)
    one = blend(first, second, 0.5, standardised=True)
    torch.testing.assert_close(blend(first, 30 * second - 7, 0.5, standardised=True), one)


def test_scores_that_are_all_the_same_say_nothing() -> None:
    first, second = torch.rand(2, 4), torch.full((2, 4), 1000.0) + 1e-4 * torch.randn(2, 4)
    found = blend(first, second, 1.0, standardised=True)
    torch.testing.assert_close(found, first.mean(1, keepdim=True).expand(2, 4))
    other = blend(torch.full((1, 3), 0.5), torch.tensor([[3.0, 1, 2]]), 0.5, standardised=True)
    assert other.argsort(descending=True).tolist() == [[0, 2, 1]]


def table(n: int = 24) -> tuple[Table, torch.Tensor]:
    """Global scores that confuse neighbours; logits of another scale that do not."""
    torch.manual_seed(0)
    place = torch.arange(n)
    scores = -(place[:, None] - place).abs() / n + 0.2 * torch.rand(n, n)
    pairs = 40.0 * torch.eye(n) + 8 * torch.rand(n, n)
    return Table(scores, pairs), place


def test_fit_finds_a_second_stage_that_helps() -> None:
    matcher, owners = table()
    items = gallery(owners, len(owners))
    matcher.rerank_standardised = True
    fitted = fit_second_stage(matcher, items, top_k=8)
    assert fitted.weight > 0
    assert 4 <= fitted.top_k <= 8
    assert fitted.both_stages["rsum"] > fitted.first_stage["rsum"]
    measured = evaluate(matcher, items, top_k=fitted.top_k, weight=fitted.weight)
    assert fitted.ranks.recall() == measured
    assert len(matcher.asked) == 2 * len(set(matcher.asked))  # by the fit once, and by evaluate
    _, rows = best_captions(
        matcher, items.images, items.texts, 1, top_k=fitted.top_k, weight=fitted.weight
    )
    assert 100 * (rows[:, 0] == owners).float().mean() == measured["i2t_r1"]


def test_fit_leaves_out_a_second_stage_that_harms() -> None:
    matcher, owners = table()
    matcher.scores, matcher.pairs = matcher.pairs, -matcher.pairs
    fitted = fit_second_stage(matcher, gallery(owners, len(owners)), top_k=8)
    assert (fitted.top_k, fitted.weight) == (0, 0.0)
    assert fitted.both_stages == fitted.first_stage


def test_fit_leaves_out_a_second_stage_that_helps_one_half_alone() -> None:
    matcher, owners = table()
    matcher.rerank_standardised = True
    matcher.pairs[1::2] *= -1  # of the images that the fit does not see
    fitted = fit_second_stage(matcher, gallery(owners, len(owners)), top_k=8)
    assert (fitted.top_k, fitted.weight) == (0, 0.0)
    assert fitted.both_stages["rsum"] < fitted.first_stage["rsum"]
    assert fitted.ranks.recall() == evaluate(matcher, gallery(owners, len(owners)), top_k=0)
