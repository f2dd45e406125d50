from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import run_ranks
from stopped_runs import BATCHES, Batches, Stop, assert_equal, snapshot, trainer_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from itmkit.callbacks.freeze_until import FreezeUntil


class Model(LightningModule):
    """An encoder whose backbone has modes, and some of it frozen by its owner."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Module()
        self.encoder.backbone = nn.Sequential(
            nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Dropout(0.5).eval()
        )
        self.encoder.backbone[0].bias.requires_grad = False
        self.head = nn.Linear(3, 2)

    def loss(self, x: Tensor) -> Tensor:
        return (self.head(self.encoder.backbone(x)) - 1).square().mean()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        torch.manual_seed(7 * index)  # so that a resumed run need not restore the generator
        return self.loss(batch[0])

    def validation_step(self, batch: list[Tensor]) -> None:
        assert not any(module.training for module in self.modules())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


MODES = [True, True, True, True, False]  # of the backbone and its modules
GRADIENTS = [True, False, True, True]  # of its parameters


class Record(Callback):
    """What was so in every batch: epoch, step, frozen or not, and the backbone after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        self.backbones: list[dict[str, Tensor]] = []
        self.optimized: list[tuple[list[int], int]] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.sanity_checking or not trainer.training:
            return
        backbone = pl_module.encoder.backbone
        modes = [module.training for module in backbone.modules()]
        gradients = [parameter.requires_grad for parameter in backbone.parameters()]
        frozen = not any(modes)
        assert (modes, gradients) == (([False] * 5, [False] * 4) if frozen else (MODES, GRADIENTS))
        if not self.seen or self.seen[-1][:2] != (trainer.current_epoch, trainer.global_step):
            self.seen.append((trainer.current_epoch, trainer.global_step, frozen))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.backbones.append(snapshot(pl_module.encoder.backbone))
        groups = trainer.optimizers[0].param_groups
        state = trainer.optimizers[0].state
        self.optimized.append(([len(group["params"]) for group in groups], len(state)))


def fit(
    model: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> Trainer:
    trainer = trainer_of(*callbacks, **{"max_epochs": 4} | options)
    trainer.fit(model, Batches(), [[BATCHES[0]]], ckpt_path=ckpt_path, weights_only=True)
    return trainer


def freeze(until: int = 2, unit: Any = "epoch") -> FreezeUntil:
    return FreezeUntil(["encoder.backbone"], until=until, unit=unit)


CASES = [("epoch", 2), ("epoch", 0), ("step", 4), ("step", 7)]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("unit", "until"), CASES)
def test_naive_loop_reference(unit: str, until: int, accumulate: int) -> None:
    model = Model()
    record = Record()
    trainer = fit(model, freeze(until, unit), record, accumulate_grad_batches=accumulate)

    naive = Model()
    backbone = naive.encoder.backbone
    optimizer = naive.configure_optimizers()
    step = 0
    for epoch in range(4):
        for index, batch in enumerate(BATCHES):
            frozen = (epoch if unit == "epoch" else step) < until
            for module, mode in zip(backbone.modules(), MODES, strict=True):
                module.training = mode and not frozen
            for parameter, gradient in zip(backbone.parameters(), GRADIENTS, strict=True):
                parameter.requires_grad = gradient and not frozen
            if index % accumulate == 0:
                optimizer.zero_grad()
            (naive.training_step([batch], index) / accumulate).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(BATCHES):
                optimizer.step()
                step += 1
    assert trainer.global_step == step
    assert_equal(snapshot(model), snapshot(naive))
    assert_equal(trainer.optimizers[0].state_dict(), optimizer.state_dict())
    for epoch, at, frozen in record.seen:
        assert frozen == ((epoch if unit == "epoch" else at) < until)


def test_frozen_weights_and_statistics_stand_still_and_have_no_optimizer_state() -> None:
    model, record = Model(), Record()
    initial = snapshot(model.encoder.backbone)
    fit(model, freeze(2), record)
    for k, (backbone, (groups, states)) in enumerate(
        zip(record.backbones, record.optimized, strict=True)
    ):
        assert groups == [5]
        assert states == (2 if k < 12 else 5)
        if k < 12:
            assert_equal(backbone, initial)
    changed = {name for name, value in initial.items() if not value.equal(backbone[name])}
    assert changed == set(initial) - {"0.bias"}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("unit", "until"), [*CASES, ("step", 6)])
def test_resume_is_bit_for_bit(tmp_path: Path, unit: str, until: int, accumulate: int) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    whole = Model()
    trainer = fit(whole, freeze(until, unit), **options)
    path = None
    for epochs in (1, 3, 4):
        model, record = Model(), Record()
        again = fit(
            model, freeze(until, unit), record, ckpt_path=path, max_epochs=epochs, **options
        )
        path = tmp_path / f"{epochs}.ckpt"
        again.save_checkpoint(path)
    assert record.seen[0][0] == 3
    assert_equal(snapshot(model), snapshot(whole))
    assert_equal(again.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())


@pytest.mark.parametrize("stop", [3, 7, 8, 9, 12, 13])
@pytest.mark.parametrize(("unit", "until"), [("epoch", 2), ("step", 8)])
def test_resume_in_mid_epoch_is_bit_for_bit(
    tmp_path: Path, unit: str, until: int, stop: int
) -> None:
    path = tmp_path / "stop.ckpt"
    whole, model, record = Model(), Model(), Record()
    trainer = fit(whole, freeze(until, unit))
    fit(Model(), freeze(until, unit), Stop(path, stop))
    again = fit(model, freeze(until, unit), record, ckpt_path=path)
    assert record.seen[0][1] == stop
    assert_equal(snapshot(model), snapshot(whole))
    assert_equal(again.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())


def test_validation_within_an_epoch_changes_nothing() -> None:
    class ToTrain(Model):
        def on_validation_model_train(self) -> None:
            self.train()
            self.encoder.backbone[3].eval()

    models = Model(), Model(), ToTrain()
    fit(models[0], freeze(8, "step"), limit_val_batches=0)
    fit(models[1], freeze(8, "step"), Record(), val_check_interval=2)
    fit(models[2], freeze(8, "step"), Record(), val_check_interval=2)
    assert_equal(snapshot(models[1]), snapshot(models[0]))
    assert_equal(snapshot(models[2]), snapshot(models[0]))


def state_of(model: Model) -> tuple[list[bool], list[bool]]:
    backbone = model.encoder.backbone
    return [m.training for m in backbone.modules()], [
        p.requires_grad for p in backbone.parameters()
    ]


def test_all_is_as_before_when_a_fit_ends_or_fails() -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("fails")

    model, callback = Model(), freeze(9)
    trainer = fit(model, callback, max_epochs=1)
    assert state_of(model) == (MODES, GRADIENTS)
    with pytest.raises(RuntimeError, match="fails"):
        fit(model, callback, Fail(), max_epochs=1)
    assert state_of(model) == (MODES, GRADIENTS)
    record = Record()
    fit(model, callback, record, max_epochs=1)
    assert record.optimized[-1][0] == [len(g["params"]) for g in trainer.optimizers[0].param_groups]
    assert all(frozen for *_, frozen in record.seen)


def test_submodules_may_overlap() -> None:
    model, record = Model(), Record()
    fit(model, FreezeUntil(["encoder", "encoder.backbone", "encoder.backbone.1"], 2), record)
    assert [frozen for *_, frozen in record.seen] == [True] * 12 + [False] * 12


def test_nothing_is_saved(tmp_path: Path) -> None:
    model = Model()
    names = set(model.state_dict())
    fit(model, freeze(2), max_epochs=1).save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert set(model.state_dict()) == set(checkpoint["state_dict"]) == names
    assert checkpoint["callbacks"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"submodules": "encoder"}, "submodules is 'encoder'; expected a list of names"),
        ({"submodules": []}, r"submodules is \[\]; expected a list of names"),
        ({"submodules": ["encoder"], "until": -1}, "until is -1; expected 0 or more"),
        ({"submodules": ["encoder"], "until": 5, "since": 7}, "until is 5; expected more than sin"),
        ({"submodules": ["encoder"], "until": 0, "since": 7}, "until is 0; expected more than sin"),
        ({"submodules": ["encoder"], "unit": "batch"}, "unit is 'batch'; expected one of"),
    ],
)
def test_error_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeUntil(**arguments)


@pytest.mark.parametrize("name", ["encoder.backbon", "", "head.weight"])
def test_error_submodule(name: str) -> None:
    with pytest.raises(ValueError, match=f"submodules has {name!r}; expected a submodule of Model"):
        fit(Model(), FreezeUntil(["encoder", name]))


def test_error_nothing_left_to_train() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"\['encoder', 'head'\] leave Model nothing to train"):
        fit(model, FreezeUntil(["encoder", "head"]))
    assert state_of(model) == (MODES, GRADIENTS)


def test_error_strategy() -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace())
    with pytest.raises(ValueError, match=r"strategy is a Sim.*; expected one device or DDP"):
        freeze().on_fit_start(trainer, Model())


class Plain(LightningModule):
    """Every row alone, so that two halves of a batch are the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.head = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.backbone(x)) - x[:, :2]).square().mean()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self(batch[0])

    def validation_step(self, batch: list[Tensor]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Manual(Plain):
    """Steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self(batch[0]))
        optimizer.step()


class Wrappers(Callback):
    """Keeps every wrapper of DDP, and the weights after every batch."""

    def __init__(self) -> None:
        self.wrappers: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        self.wrappers.append(trainer.strategy.model)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.strategy.model is not self.wrappers[-1]:
            self.wrappers.append(trainer.strategy.model)
        self.weights.append(snapshot(pl_module))


DDP_CASES: dict[str, dict[str, Any]] = {
    "epoch": {"until": 2, "unit": "epoch"},
    "accumulated": {"until": 1, "unit": "epoch", "accumulate_grad_batches": 2},
    "step": {"until": 5, "unit": "step"},
    "views": {"until": 5, "unit": "step", "gradient_as_bucket_view": True},
    "static": {"until": 5, "unit": "step", "static_graph": True},
    "manual": {"until": 5, "unit": "step", "static_graph": True},
}
ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def fit_plain(case: str, strategy: Any, batch_size: int, devices: int) -> Wrappers:
    options = {k: v for k, v in DDP_CASES[case].items() if k == "accumulate_grad_batches"}
    record = Wrappers()
    callback = FreezeUntil(["backbone"], DDP_CASES[case]["until"], DDP_CASES[case]["unit"])
    options |= {"max_epochs": 4, "strategy": strategy, "devices": devices}
    trainer = trainer_of(callback, record, **options)
    rows = TensorDataset(ROWS)
    sampler = DistributedSampler(
        rows, num_replicas=devices, rank=int(os.environ.get("RANK", 0)), shuffle=False
    )
    loader = DataLoader(rows, batch_size=batch_size, sampler=sampler)
    trainer.fit(Manual() if case == "manual" else Plain(), loader, loader)
    return record


def run_rank(folder: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    rank = int(os.environ["RANK"])
    found = {}
    for case, given in DDP_CASES.items():
        ddp = {k: given[k] for k in ("gradient_as_bucket_view", "static_graph") if k in given}
        record = fit_plain(case, DDPStrategy(**ddp), 2, 2)
        assert isinstance(record.wrappers[0], DistributedDataParallel)
        gradients = []
        for wrapper in (record.wrappers[0], record.wrappers[1]):
            wrapper.module.zero_grad()
            wrapper(ROWS[rank : rank + 1]).backward()
            gradients.append(wrapper.module.head.weight.grad.clone())
        found[case] = {
            "weights": record.weights,
            "wrappers": len(record.wrappers),
            "gradients": gradients,
        }
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", DDP_CASES)
def test_ddp_is_one_process_on_the_same_global_batch(
    ranks: list[dict[str, Any]], case: str
) -> None:
    expected = fit_plain(case, "auto", 4, 1).weights
    first, second = (rank[case]["weights"] for rank in ranks)
    assert len(first) == len(expected) == 24
    initial, changed = snapshot(Plain()), []
    for own, other, one in zip(first, second, expected, strict=True):
        assert_equal(own, other)
        torch.testing.assert_close(own, one, atol=1e-10, rtol=1e-10)
        changed.append(not own["backbone.0.weight"].equal(initial["backbone.0.weight"]))
    frozen = {"epoch": 12, "accumulated": 7}.get(case, 5)
    assert changed == [False] * frozen + [True] * (24 - frozen)


@pytest.mark.parametrize("case", ["epoch", "accumulated", "step", "views"])  # static: no hooks
def test_ddp_wrappers_of_before_synchronise_nothing(ranks: list[dict[str, Any]], case: str) -> None:
    """They were kept, and used once more: each process has the gradient of its own row."""
    assert [rank[case]["wrappers"] for rank in ranks] == [3, 3]
    for own, other in zip(*(rank[case]["gradients"] for rank in ranks), strict=True):
        assert not torch.allclose(own, other)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))


@pytest.mark.parametrize("until", [5, None])
def test_frozen_from_a_step_on(until: int | None) -> None:
    record = Record()
    fit(Model(), FreezeUntil(["encoder.backbone"], until, "step", since=2), record)
    expected = [step >= 2 and (until is None or step < until) for _, step, _ in record.seen]
    assert [frozen for _, _, frozen in record.seen] == expected
    assert set(expected) == {True, False}


def in_effect(model: Model, *callbacks: FreezeUntil, **options: Any) -> list[bool]:
    """Whether the backbone was frozen in every step of a fit."""
    record = Record()
    fit(model, *callbacks, record, **options)
    assert state_of(model) == (MODES, GRADIENTS)
    return [frozen for *_, frozen in record.seen]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("second", "frozen"),
    [
        ({"until": 8}, 8),  # the first to end does not free what the other holds
        ({"until": 8, "since": 3}, 8),
        ({"until": 8, "since": 5}, 8),  # from one to the other
        ({"until": None, "since": 2}, 24),
        ({"until": 3}, 5),
    ],
)
def test_what_two_hold_is_frozen_until_both_let_it_go(
    order: int, second: dict[str, Any], frozen: int
) -> None:
    both = [
        FreezeUntil(["encoder.backbone"], 5, "step"),
        FreezeUntil(["encoder"], unit="step", **second),
    ]
    assert in_effect(Model(), *both[::order]) == [k < frozen for k in range(24)]


def test_what_two_hold_is_as_before_when_a_fit_fails() -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("fails")

    model = Model()
    with pytest.raises(RuntimeError, match="fails"):
        fit(model, FreezeUntil(["encoder"], 5), FreezeUntil(["encoder.backbone"], 2), Fail())
    assert state_of(model) == (MODES, GRADIENTS)
