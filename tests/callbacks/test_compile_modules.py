from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from itmkit.callbacks.compile_modules import CompileModules


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layer = nn.Linear(4, 3)
        self.head = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.head(self.encoder.layer(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Model, *callbacks: Any) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([torch.full((4,), float(x)) for x in range(6)], batch_size=2))


@pytest.mark.filterwarnings("ignore")
def test_named_modules_are_compiled_and_names_stay() -> None:
    plain = Model()
    model = copy.deepcopy(plain)
    torch._dynamo.utils.counters.clear()
    fit(model, CompileModules(["encoder.layer"], backend="eager"))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert model.encoder.layer._compiled_call_impl is not None
    assert model.head._compiled_call_impl is None
    fit(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("submodules", [[], "encoder"])
def test_error_no_names(submodules: Any) -> None:
    with pytest.raises(ValueError, match=r"submodules is .*; expected a list of names"):
        CompileModules(submodules)


@pytest.mark.filterwarnings("ignore")
def test_error_of_a_name_that_is_no_submodule() -> None:
    message = r"submodules has 'encoder\.missing'; expected a submodule of Model, which has encoder"
    with pytest.raises(ValueError, match=message):
        fit(Model(), CompileModules(["encoder.missing"]))
