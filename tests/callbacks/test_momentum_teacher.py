from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import run_ranks
from stopped_runs import Batches, Stop, assert_equal, snapshot, trainer_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from itmkit.callbacks import MomentumTeacher
from itmkit.checks import InputError


class Student(LightningModule):
    """A plain module: an encoder and a head, distilled from whatever teacher it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 2)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x = batch[0]
        target = self.teacher.encoder(x)
        assert not target.requires_grad
        encoded = self.encoder(x)
        return (encoded - target - 1).square().mean() + self.head(encoded).square().mean()

    def test_step(self, batch: list[Tensor]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Record(Callback):
    """Weights of student and teacher at the end of every batch."""

    def __init__(self, name: str = "encoder") -> None:
        self.name = name
        self.steps: list[int] = []
        self.students: list[dict[str, Tensor]] = []
        self.teachers: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.note(trainer, pl_module)

    def note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)
        self.students.append(snapshot(getattr(pl_module, self.name)))
        self.teachers.append(snapshot(getattr(pl_module.teacher, self.name)))


def fit(
    model: LightningModule,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(model, Batches(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_naive_loop_reference(accumulate, momentum):
    record = Record()
    teacher = MomentumTeacher(momentum, ["encoder"])
    fit(Student(), teacher, record, accumulate_grad_batches=accumulate, max_epochs=2)
    assert record.steps[-1] == 2 * -(-6 // accumulate)
    assert_equal(record.teachers[0], snapshot(Student().encoder))
    expected = record.teachers[0]
    for k in range(1, len(record.steps)):
        if record.steps[k] != record.steps[k - 1]:
            expected = {
                name: momentum * expected[name] + (1 - momentum) * value
                if "running" not in name and "num_batches" not in name
                else value
                for name, value in record.students[k].items()
            }
        torch.testing.assert_close(record.teachers[k], expected)


def test_frozen_and_outside_of_the_module():
    model = Student()
    before = set(model.state_dict())
    trainer = fit(model, MomentumTeacher())
    assert set(model.state_dict()) == before
    assert not any(name.startswith("teacher") for name, _ in model.named_modules())
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters()}
    assert all(not p.requires_grad and p.grad is None for p in model.teacher.parameters())
    assert optimized.isdisjoint({id(p) for p in model.teacher.parameters()})
    model.train()
    assert not any(module.training for module in model.teacher.modules())


def test_whole_module():
    model = Student()
    fit(model, MomentumTeacher(0.0))
    assert_equal(snapshot(model.teacher), snapshot(model))
    assert model.teacher.head(model.teacher.encoder(torch.zeros(2, 4))).shape == (2, 2)


def test_named_submodules_only():
    model = Student()
    fit(model, MomentumTeacher(submodules=["encoder"]))
    assert [name for name, _ in model.teacher.named_children()] == ["encoder"]


@pytest.mark.parametrize(
    ("accumulate", "stop"), [(1, 2), (1, 3), (1, 6), (1, 8), (2, 2), (2, 8), (4, 10)]
)
def test_resume_is_bit_for_bit(tmp_path, accumulate, stop):
    path = tmp_path / "stop.ckpt"
    whole, again = Student(), Student()
    options = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    fit(whole, MomentumTeacher(0.9), Drop(), **options)
    fit(Student(), MomentumTeacher(0.9), Drop(), Stop(path, stop), **options)
    record = Record()
    fit(again, MomentumTeacher(0.9), record, Drop(), ckpt_path=path, **options)
    assert 0 < record.steps[0] < record.steps[-1]
    assert_equal(snapshot(again), snapshot(whole))
    assert_equal(snapshot(again.teacher), snapshot(whole.teacher))


class Drop(Callback):
    """Dropout by step, so that a resumed run need not restore the generator."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        torch.manual_seed(trainer.fit_loop.epoch_loop.total_batch_idx)


def test_resume_within_an_accumulation(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if args[-1] == 2:  # after one step and half of the next
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    before, record = Record(), Record()
    fit(Student(), MomentumTeacher(0.9), before, Save(), accumulate_grad_batches=2)
    options = {"ckpt_path": tmp_path / "half.ckpt", "accumulate_grad_batches": 2}
    fit(Student(), MomentumTeacher(0.9), record, **options)
    assert before.steps == [0, 0, 1, 1, 2, 2, 3]
    assert record.steps == [1, 2, 2, 3]
    assert_equal(record.teachers[0], before.teachers[3])
    for k in range(1, len(record.steps)):
        stepped = record.steps[k] != record.steps[k - 1]
        name = "0.weight"
        assert torch.equal(record.teachers[k][name], record.teachers[k - 1][name]) != stepped


def test_resume_from_between_a_step_and_its_update(tmp_path):
    class SaveFirst(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if args[-1] == 2:
                trainer.save_checkpoint(tmp_path / "between.ckpt")

    whole, again = Student(), Student()
    fit(whole, SaveFirst(), MomentumTeacher(0.9), Drop())
    fit(again, MomentumTeacher(0.9), Drop(), ckpt_path=tmp_path / "between.ckpt")
    assert_equal(snapshot(again.teacher), snapshot(whole.teacher))


def test_state_dict_round_trip(tmp_path):
    model, teacher = Student(), MomentumTeacher(0.9)
    fit(model, teacher).save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["MomentumTeacher"]
    assert state["global_step"] == 6
    assert_equal(dict(state["teacher"]), snapshot(model.teacher))
    assert not any("teacher" in name for name in checkpoint["state_dict"])


def test_resume_without_a_saved_teacher_copies_the_restored_weights(tmp_path):
    class NoTeacher(Student):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.head(self.encoder(batch[0])).square().mean()

    model, record = NoTeacher(), Record()
    fit(model).save_checkpoint(tmp_path / "end.ckpt")
    trained = snapshot(model.encoder)
    fit(NoTeacher(), MomentumTeacher(), record, ckpt_path=tmp_path / "end.ckpt", max_epochs=2)
    assert_equal(record.teachers[0], trained)
    assert record.steps[0] == 6
    assert not torch.equal(record.teachers[1]["0.weight"], trained["0.weight"])


def test_weights_loaded_late_are_copied():
    class Late(Student):
        def setup(self, stage: str) -> None:
            self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

        def configure_model(self) -> None:
            nn.init.constant_(self.encoder[0].weight, 0.25)

    record = Record()
    fit(Late(), MomentumTeacher(submodules=["encoder"]), record)
    assert torch.equal(record.teachers[0]["0.weight"], torch.full((3, 4), 0.25))


def test_second_fit_starts_from_the_weights(tmp_path):
    model, teacher = Student(), MomentumTeacher(0.9)
    trainer = fit(model, teacher)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trainer.test(model, Batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    weights = snapshot(model.encoder)
    record = Record()
    fit(model, teacher, record)
    assert_equal(record.teachers[0], weights)


def test_module_that_keeps_a_tensor_of_its_graph():
    model = Student()
    model.kept = model.head.weight * 2
    fit(model, MomentumTeacher())
    assert not model.teacher.kept.requires_grad


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
@pytest.mark.parametrize("submodules", [["encoder"], None])
def test_teacher_of_a_profiled_model(tmp_path, monkeypatch, profiler, submodules):
    monkeypatch.chdir(tmp_path)  # where traces go
    plain, profiled = Student(), Student()
    fit(plain, MomentumTeacher(0.9, submodules), Drop())
    fit(profiled, MomentumTeacher(0.9, submodules), Drop(), profiler=profiler)
    assert_equal(snapshot(profiled.teacher), snapshot(plain.teacher))
    modules = profiled.teacher.modules()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_teacher_has_the_hooks_of_the_model_itself_alone():
    def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    class Watcher(list[Any]):  # as if of another package
        __module__ = "watcher"

        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.append(output)

    model, watcher = Student(), Watcher()
    handle = model.encoder.register_forward_hook(watcher)
    model.encoder.register_forward_hook(doubled)
    inside = partial(watcher.__call__)
    model.encoder[0].register_forward_hook(inside)
    fit(model, MomentumTeacher())
    assert list(model.encoder._forward_hooks.values()) == [watcher, doubled]  # all are back
    assert list(model.encoder[0]._forward_hooks.values()) == [inside]
    assert list(model.teacher.encoder._forward_hooks.values()) == [doubled]
    assert not model.teacher.encoder[0]._forward_hooks
    x = torch.randn(2, 4)
    torch.testing.assert_close(model.teacher.encoder(x), 2 * model.teacher.encoder[:](x))
    handle.remove()
    assert list(model.encoder._forward_hooks.values()) == [doubled]


def test_test_after_fit_keeps_the_teacher_in_checkpoints(tmp_path):
    model, teacher = Student(), MomentumTeacher(0.9)
    trainer = fit(model, teacher)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fresh = trainer_of(MomentumTeacher(0.9))
    fresh.test(model, Batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    fresh.save_checkpoint(tmp_path / "again.ckpt")
    for name in ("end", "again"):
        checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        state = checkpoint["callbacks"]["MomentumTeacher"]
        assert_equal(dict(state["teacher"]), snapshot(model.teacher))


def test_several_optimizers_are_one_update():
    class Manual(Student):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            if index % 2:
                return
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            parts = (self.encoder, self.head)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    record = Record("head")
    fit(Manual(), MomentumTeacher(0.9), record)
    assert record.steps == [0, 2, 2, 4, 4, 6, 6]
    expected = record.teachers[0]
    for k in range(1, 7):
        if k % 2:
            expected = {n: 0.9 * expected[n] + 0.1 * v for n, v in record.students[k].items()}
        torch.testing.assert_close(record.teachers[k], expected)


def test_shared_submodules_stay_shared():
    class Shared(Student):
        def __init__(self) -> None:
            super().__init__()
            self.text = nn.ModuleDict({"encoder": self.encoder})

    model = Shared()
    fit(model, MomentumTeacher(submodules=["encoder", "text"]))
    assert model.teacher.text["encoder"] is model.teacher.encoder


@pytest.mark.parametrize(
    ("precision", "student", "teacher"),
    [
        ("bf16-true", torch.bfloat16, torch.float32),
        ("bf16-mixed", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_half_precision(precision, student, teacher):
    record = Record()
    model = Student()
    fit(model, MomentumTeacher(0.999), record, precision=precision)
    assert record.students[0]["0.weight"].dtype == student
    assert record.teachers[0]["0.weight"].dtype == teacher
    for k in range(1, len(record.steps)):
        expected = record.teachers[k - 1]["0.weight"].lerp(
            record.students[k]["0.weight"].to(teacher), 0.001
        )
        torch.testing.assert_close(record.teachers[k]["0.weight"], expected)
        assert not torch.equal(record.teachers[k]["0.weight"], record.teachers[k - 1]["0.weight"])


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_error_momentum(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}"):
        MomentumTeacher(momentum)


def test_error_submodules():
    with pytest.raises(ValueError, match=r"submodules is .*; expected a list"):
        MomentumTeacher(submodules="encoder")
    with pytest.raises(ValueError, match=r"submodules is \[\]; expected a list"):
        MomentumTeacher(submodules=[])
    with pytest.raises(ValueError, match=r"submodules has 'a\.b'; expected names without a dot"):
        MomentumTeacher(submodules=["encoder", "a.b"])
    with pytest.raises(ValueError, match="submodules has 'decoder'; expected a submodule of Stud"):
        fit(Student(), MomentumTeacher(submodules=["encoder", "decoder"]))


def test_error_of_a_teacher_of_other_submodules(tmp_path):
    fit(Student(), MomentumTeacher(0.9, ["encoder"])).save_checkpoint(tmp_path / "last.ckpt")
    told = (
        r"the teacher in checkpoint '.*last\.ckpt' does not fit Student: head.bias \(not in the f"
    )
    with pytest.raises(InputError, match=told):
        fit(Student(), MomentumTeacher(0.9), ckpt_path=tmp_path / "last.ckpt")


def test_error_name_is_taken():
    model = Student()
    model.teacher = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Student already has a submodule called 'teacher'"):
        fit(model, MomentumTeacher())


def run_rank(folder: Path) -> None:
    """One of two processes: different data on each, so different running statistics."""
    rank = int(os.environ["RANK"])
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(9))
    model, record = Student(), Record()
    trainer = trainer_of(MomentumTeacher(0.9), record, devices=2, strategy="ddp")
    trainer.fit(model, DataLoader(TensorDataset(data), batch_size=3))
    found = {"students": record.students, "teachers": record.teachers}
    torch.save(found, folder / f"{rank}.pt")


def test_ddp_teacher_is_the_same_on_all_ranks(tmp_path):
    run_ranks(__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert not torch.equal(
        first["students"][-1]["1.running_mean"], second["students"][-1]["1.running_mean"]
    )
    assert len(first["teachers"]) == 3
    for own, other in zip(first["teachers"], second["teachers"], strict=True):
        assert_equal(own, other)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
