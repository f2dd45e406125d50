from __future__ import annotations

import pytest
import torch

from itmkit.losses import RowCrossEntropyLoss
from itmkit.losses.functional import row_cross_entropy_loss


def test_naive_loop_reference() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 4)
    positives = torch.rand(5, 4) < 0.3
    positives[:, 0] = True
    positives[2] = True  # no negative: left out
    costs = []
    for i in range(5):
        for j in range(4):
            negatives = [scores[i, k] for k in range(4) if not positives[i, k]]
            if positives[i, j] and negatives:
                logits = torch.stack([scores[i, j], *negatives]) / 0.5
                costs.append(-logits.log_softmax(0)[0])
    found = RowCrossEntropyLoss(0.5)(scores, positives)
    torch.testing.assert_close(found, torch.stack(costs).mean())
    total = row_cross_entropy_loss(scores, positives, temperature=0.5, reduction="sum")
    torch.testing.assert_close(total, torch.stack(costs).sum())


def test_columns_do_not_count() -> None:
    scores, positives = torch.randn(3, 4), torch.eye(3, 4, dtype=torch.bool)
    first = RowCrossEntropyLoss()(scores, positives)
    scores[1] += 5.0  # of one row alone
    torch.testing.assert_close(RowCrossEntropyLoss()(scores, positives), first)


def test_error() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0.0; expected a finite number above 0"):
        RowCrossEntropyLoss(0.0)
    with pytest.raises(ValueError, match=r"temperature is -1.0; expected a finite number above 0"):
        row_cross_entropy_loss(torch.eye(2), temperature=-1.0)
