"""A report ranks as an evaluation does, from scores that are computed once."""

from __future__ import annotations

import pytest
import torch
from systems import ALL, dataset_of

from itmkit.data import ImageTextData
from itmkit.report.evaluated import ScoreTable
from itmkit.retrieval import encode, rank_queries, score_matrix


@pytest.mark.parametrize("standardised", [False, True])
def test_second_stage_is_that_of_the_model(standardised: bool) -> None:
    torch.manual_seed(0)
    case = ALL["mate_groups"]
    matcher = case.make(None, None).eval()
    matcher.rerank_top_k, matcher.rerank_weight = 6, 0.5
    matcher.rerank_standardised = standardised
    data = ImageTextData(dataset_of(case.reading(None), 12), train_split="val", eval_batch_size=12)
    gallery = encode(matcher, data.val_dataloader())
    table = ScoreTable(matcher, gallery, score_matrix(matcher, gallery.images, gallery.texts))
    (found,) = rank_queries(table, table.rows())
    (expected,) = rank_queries(matcher, gallery)
    assert torch.equal(found.i2t, expected.i2t)
    assert torch.equal(found.t2i, expected.t2i)
    matcher.rerank_standardised = not standardised
    (other,) = rank_queries(matcher, gallery)
    assert not torch.equal(found.t2i, other.t2i)
