"""The warm-up and cosine schedule."""

import pytest
import torch

from itmkit.systems import WarmupCosine


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 5), "warmup_steps must be at least 0, got -1"),
        ((5, 5), "total_steps must be more than warmup_steps=5, got 5"),
    ],
)
def test_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupCosine(optimizer(), *arguments)


def test_state_dict_round_trip_goes_on_where_it_was():
    first = optimizer()
    schedule = WarmupCosine(first, 2, 10, final=0.1)
    rates = []
    for _ in range(14):
        first.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[-1] == pytest.approx(0.2)
    second = optimizer()
    resumed = WarmupCosine(second, 2, 10, final=0.1)
    third = WarmupCosine(optimizer(), 2, 10, final=0.1)
    for _ in range(5):
        third.optimizer.step()
        third.step()
    resumed.load_state_dict(third.state_dict())
    second.step()
    resumed.step()
    assert resumed.get_last_lr()[0] == pytest.approx(rates[5])
