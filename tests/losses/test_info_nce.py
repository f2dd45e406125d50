from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from itmkit.checks import InputError
from itmkit.losses import InfoNCELoss
from itmkit.losses.functional import info_nce_loss


def naive(scores, positives, temperature):
    rows, columns = [], []
    n, m = scores.shape
    for i in range(n):
        for j in range(m):
            if not positives[i, j]:
                continue
            true = math.exp(scores[i, j] / temperature)
            row = [math.exp(scores[i, k] / temperature) for k in range(m) if not positives[i, k]]
            column = [math.exp(scores[k, j] / temperature) for k in range(n) if not positives[k, j]]
            if row:
                rows.append(-math.log(true / (true + sum(row))))
            if column:
                columns.append(-math.log(true / (true + sum(column))))
    return rows, columns


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 2)])
def test_naive_loop(shape):
    torch.manual_seed(0)
    scores, positives = torch.randn(shape).double(), torch.rand(shape) < 0.4
    positives[0] = True  # a row without a negative
    positives[1] = False  # and one without a positive
    rows, columns = naive(scores, positives, 0.5)
    total = info_nce_loss(scores, positives, temperature=0.5, reduction="sum")
    assert total.item() == pytest.approx(sum(rows) + sum(columns), rel=1e-10)


def test_mean_of_equal_counts_is_the_cross_entropy_of_both_directions():
    scores = torch.randn(5, 5)
    target = torch.arange(5)
    expected = F.cross_entropy(scores / 0.1, target) + F.cross_entropy(scores.T / 0.1, target)
    torch.testing.assert_close(InfoNCELoss(0.1)(scores), expected)


def test_learnt_temperature_has_a_gradient_and_a_floor():
    loss = InfoNCELoss(0.07, learnt=True)
    assert loss.temperature.item() == pytest.approx(0.07)
    loss(torch.eye(3)).backward()
    assert loss.log_temperature.grad != 0
    with torch.no_grad():
        loss.log_temperature.fill_(-20.0)
    assert loss.temperature.item() == pytest.approx(0.01)
    loss.zero_grad()
    loss(-torch.eye(3)).backward()  # the true pairs are the worst ones
    assert loss.log_temperature.grad < -1  # so that it rises again
    assert list(InfoNCELoss().parameters()) == []


def test_reading_a_learnt_temperature_changes_nothing():
    loss = InfoNCELoss(0.07, learnt=True)
    with torch.no_grad():
        loss.log_temperature.fill_(-20.0)
    assert "temperature=0.01," in repr(loss)
    scores = -torch.eye(3)
    torch.testing.assert_close(loss.eval()(scores), InfoNCELoss(0.01)(scores))
    assert loss.log_temperature.item() == -20.0
    loss.train()(torch.eye(3))
    assert loss.log_temperature.item() == pytest.approx(math.log(0.01))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.1", None])
def test_error_temperature(value):
    for make in (
        InfoNCELoss,
        lambda temperature: info_nce_loss(torch.eye(2), temperature=temperature),
    ):
        with pytest.raises(InputError, match=f"temperature is {value!r}; expected a finite number"):
            make(temperature=value)


def test_errors():
    with pytest.raises(InputError, match=r"temperature is 0.009; expected 0.01 or more where it"):
        InfoNCELoss(0.009, learnt=True)
    with pytest.raises(InputError, match="reduction is 'max'; expected one of 'mean', 'sum'"):
        InfoNCELoss(reduction="max")
    with pytest.raises(InputError, match=r"scores has the shape \(3,\)"):
        info_nce_loss(torch.zeros(3))
    with pytest.raises(InputError, match=r"positives is a torch.int64 tensor; expected a bool"):
        info_nce_loss(torch.zeros(2, 2), torch.arange(2))
