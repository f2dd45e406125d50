"""A module for a while in another state comes back exactly as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itmkit.modes import evaluation_mode, on_device


def mixed() -> nn.Module:
    """A model in training whose frozen part is in evaluation mode."""
    frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).eval().requires_grad_(False)
    return nn.Sequential(frozen, nn.Dropout(), nn.Linear(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_gets_its_own_mode_back(fails: bool) -> None:
    model = mixed()
    before = [module.training for module in model.modules()]
    assert True in before
    assert False in before
    try:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("fails", [False, True])
def test_each_tensor_gets_its_device_back(fails: bool) -> None:
    model = mixed()
    model[2].to("meta")
    model[1].weight = model[0][1].weight  # shared
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        with on_device(model, "meta"):
            assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
            if fails:
                raise KeyError
    except KeyError:
        pass
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert list(after) == list(tensors)
    for name, tensor in after.items():
        assert tensor is tensors[name]  # an optimizer still knows it
        assert tensor.device == values[name].device
        assert tensor.device.type == "meta" or torch.equal(tensor, values[name])
    assert model[1].weight is model[0][1].weight
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
