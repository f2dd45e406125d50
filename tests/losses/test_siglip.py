from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from itmkit.checks import InputError
from itmkit.losses import SigLIPLoss
from itmkit.losses.functional import siglip_loss


@pytest.mark.parametrize("shape", [(4, 4), (3, 6)])
def test_naive_loop(shape):
    torch.manual_seed(0)
    scores, positives = torch.randn(shape).double(), torch.rand(shape) < 0.4
    total = 0.0
    for i in range(shape[0]):
        for j in range(shape[1]):
            sign = 1 if positives[i, j] else -1
            total += math.log1p(math.exp(-sign * (scores[i, j] / 0.2 - 1.5)))
    arguments = {"temperature": 0.2, "bias": -1.5}
    found = siglip_loss(scores, positives, **arguments)
    assert found.item() == pytest.approx(total / shape[0], rel=1e-10)
    found = siglip_loss(scores, positives, **arguments, reduction="sum")
    assert found.item() == pytest.approx(total, rel=1e-10)


def test_temperature_and_bias_are_learnt_unless_told_otherwise():
    loss = SigLIPLoss()
    loss(torch.eye(3)).backward()
    assert {name for name, p in loss.named_parameters() if p.grad} == {"log_temperature", "bias"}
    fixed = SigLIPLoss(learnt=False)
    assert not list(fixed.parameters())
    assert not fixed.state_dict()
    torch.testing.assert_close(fixed(torch.eye(3)), loss(torch.eye(3)).detach())


def test_a_group_of_processes_may_share_the_rows():
    torch.manual_seed(0)
    scores, positives = torch.randn(6, 4), torch.rand(6, 4) < 0.3
    parts = [
        siglip_loss(scores[rows], positives[rows], reduction="sum")
        for rows in ([0, 1], [2, 3, 4, 5])
    ]
    torch.testing.assert_close(sum(parts), siglip_loss(scores, positives, reduction="sum"))


def test_errors():
    for make in (SigLIPLoss, partial(siglip_loss, torch.eye(2))):
        with pytest.raises(InputError, match="temperature is -1"):
            make(temperature=-1)
        with pytest.raises(InputError, match="bias is nan; expected a finite number"):
            make(bias=math.nan)
        with pytest.raises(InputError, match="bias is 'x'; expected a finite number"):
            make(bias="x")
    with pytest.raises(InputError, match="reduction is 'max'; expected one of 'mean', 'sum'"):
        SigLIPLoss(reduction="max")
