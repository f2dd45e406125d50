"""Several models as one, against the average of their standardised tables."""

from __future__ import annotations

import pytest
import torch
from score_table import Table, gallery

from itmkit.checks import InputError
from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval import Ensemble, evaluate, pair_scores, score_matrix

N, M = 9, 21
OWNERS = torch.arange(M) % N


def tables(count: int) -> list[Table]:
    """Models whose scores are of very different scales, and right on average."""
    g = torch.Generator().manual_seed(0)
    right = (torch.arange(N)[:, None] == OWNERS).float()
    found = []
    for number in range(count):
        scores, pairs = (right + 0.6 * torch.randn(N, M, generator=g) for _ in range(2))
        found.append(Table(10.0**number * scores - 5, 3 * pairs + number))
    return found


def standardised(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean()) / scores.std(correction=0)


@pytest.mark.parametrize("count", [2, 3])
def test_mean_of_standardised_scores(count: int) -> None:
    models = tables(count)
    ensemble = Ensemble(models, [gallery(OWNERS, N)] * count)
    own = ensemble.gallery
    expected = torch.stack([standardised(model.scores) for model in models]).mean(0)
    order = OWNERS.argsort(stable=True)  # captions follow their images
    found = score_matrix(ensemble, own.images, own.texts, chunk_size=4)
    torch.testing.assert_close(found, expected[:, order], atol=1e-5, rtol=0)
    recall = evaluate(ensemble, own, chunk_size=5)
    assert recall == cross_modal_recall(expected[:, order], torch.arange(N), OWNERS[order])
    alone = [evaluate(model, gallery(OWNERS, N))["rsum"] for model in models]
    assert recall["rsum"] > max(alone)


def test_second_stage_of_the_models_that_have_one() -> None:
    first, second, third = tables(3)
    for model, top_k in ((second, 4), (third, 2)):
        model.rerank_top_k, model.rerank_weight = top_k, 0.6
    first.rerank_weight = 0.9  # of no candidates
    ensemble = Ensemble([first, second, third], [gallery(OWNERS, N)] * 3)
    assert ensemble.rerank_top_k == 4
    assert ensemble.rerank_weight == pytest.approx(0.4)
    own, order = ensemble.gallery, OWNERS.argsort(stable=True)
    rows = torch.cartesian_prod(torch.arange(N), torch.arange(M))
    found = pair_scores(ensemble, own.images, own.texts, rows, chunk_size=7).view(N, M)
    right, columns = OWNERS[order], torch.arange(M)
    expected = []
    for model in (second, third):
        pairs = model.pairs[:, order]
        sample = torch.cat([pairs[right, columns], pairs[(right + 1) % N, columns]])
        expected.append((pairs - sample.mean()) / sample.std(correction=0))
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=0)
    assert evaluate(ensemble, own) != evaluate(ensemble, own, top_k=0)


def test_error_of_a_second_stage_that_no_model_has() -> None:
    ensemble = Ensemble(tables(2), [gallery(OWNERS, N)] * 2)
    with pytest.raises(InputError, match="top_k is not 0; expected 0: no model has a second stage"):
        evaluate(ensemble, ensemble.gallery, top_k=3, weight=0.5)


def test_error_of_a_score_that_is_not_finite() -> None:
    """It names the model, and the pair in its gallery."""
    one, other = tables(2)
    other.scores[2, 3] = torch.nan
    own = gallery(OWNERS, N)
    column = OWNERS.argsort(stable=True).tolist().index(3)
    message = (
        rf"models\[1\].score of image row 2 and caption row {column} is nan; expected a finite"
    )
    with pytest.raises(InputError, match=message):
        Ensemble([one, other], [own, own])


def test_error() -> None:
    one, other = tables(2)
    own = gallery(OWNERS, N)
    with pytest.raises(InputError, match="models has 1 and galleries 1; expected two or more"):
        Ensemble([one], [own])
    with pytest.raises(InputError, match=r"galleries\[1\] differs in text_ids; expected the imag"):
        Ensemble([one, other], [own, own.part(torch.arange(N), torch.arange(M - 1))])
    for models, galleries, message in (
        ([one, other], own, r"galleries is a Gallery; expected a list of two or more"),
        ([one, other], [own, None], r"galleries\[1\] is None; expected a Gallery"),
    ):
        with pytest.raises(InputError, match=message):
            Ensemble(models, galleries)
    with pytest.raises(InputError, match="have no field row; expected those"):
        evaluate(Ensemble([one, other], [own, own]), own)
    with pytest.raises(InputError, match="an Ensemble does not encode"):
        Ensemble([one, other], [own, own]).encode_text(None)


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_scores_that_are_all_the_same_say_nothing(noise: float) -> None:
    """Also where they differ by rounding."""
    one, other = tables(2)
    g = torch.Generator().manual_seed(1)
    other.scores = 3.0 * (1 + noise * torch.randn(N, M, generator=g))
    ensemble = Ensemble([one, other], [gallery(OWNERS, N)] * 2)
    assert evaluate(ensemble, ensemble.gallery) == evaluate(one, gallery(OWNERS, N))
