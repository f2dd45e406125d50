"""A teacher in plain PyTorch; tests/callbacks/test_momentum_teacher.py has it in Lightning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.nn import Teacher


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_naive_loop_reference(momentum: float, compiled: bool) -> None:
    model: Any = make()
    if compiled:
        model.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    teacher = Teacher(model, momentum)
    expected = values(model)
    for _ in range(3):
        x = torch.randn(8, 4)
        with torch.no_grad():
            target = teacher.model(x)
        optimizer.zero_grad()
        (model(x) - target - 1).square().mean().backward()
        optimizer.step()
        teacher.update()
        for name, new in values(model).items():
            is_buffer = "running" in name or "num" in name
            expected[name] = new if is_buffer else momentum * expected[name] + (1 - momentum) * new
    torch.testing.assert_close(values(teacher.model), expected)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    model.train()
    assert not any(module.training for module in teacher.model.modules())


def test_momentum_may_change() -> None:
    model = nn.Linear(2, 1)
    teacher = Teacher(model, 1.0)
    nn.init.constant_(model.weight, 3.0)
    teacher.update()
    assert not torch.equal(teacher.model.weight, model.weight)
    teacher.momentum = 0.0
    teacher.update()
    assert torch.equal(teacher.model.weight, model.weight)


def test_state_dict_round_trip() -> None:
    model = make()
    teacher = Teacher(model, 0.5)
    nn.init.zeros_(model[0].weight)
    teacher.update()
    state = copy.deepcopy(teacher.state_dict())
    again = Teacher(make(), 0.5)
    again.load_state_dict(state)
    torch.testing.assert_close(values(again.model), values(teacher.model), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"teacher does not fit Sequential: 0\.bias "):
        again.load_state_dict({})


def test_half_precision_students_have_a_teacher_in_float32() -> None:
    model = make().bfloat16()
    teacher = Teacher(model, 0.999)
    nn.init.ones_(model[0].weight)
    before = values(teacher.model)["0.weight"]
    teacher.update()
    after = teacher.model[0].weight
    assert after.dtype == torch.float32
    torch.testing.assert_close(after.detach(), before.lerp(torch.ones(3, 4), 0.001))
    assert teacher.model(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_refused() -> None:
    with pytest.raises(InputError, match=r"momentum is 1\.1"):
        Teacher(make(), 1.1)
    with pytest.raises(InputError, match=r"student is .*; expected a torch\.nn\.Module"):
        Teacher(lambda x: x)  # type: ignore[arg-type]
