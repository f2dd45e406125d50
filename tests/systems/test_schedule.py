"""Learning rates over a run: the warm-up and cosine schedule, its length, factors of groups."""

import math
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoringPlateau
from quiet_trainer import quiet_trainer
from tiny_matcher import TinyDataset, TinyMatcher
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import SWALR

from itmkit.checks import InputError
from itmkit.configs import config_names, load_config
from itmkit.data import ImageTextData
from itmkit.systems import WarmupCosine


def optimizer(rate=2.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def rates_of(schedule, steps):
    """The rates that the first steps are made with."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_restarts_begin_rise_and_fall_anew():
    alone = rates_of(WarmupCosine(optimizer(), 2, 6), 6)
    schedule = WarmupCosine(optimizer(), 2, 12, restarts=[6])
    assert rates_of(schedule, 12) == pytest.approx(alone + alone)


@pytest.mark.parametrize("restarts", [[6, 6], [6, 3]])
def test_error_of_restarts(restarts):
    with pytest.raises(InputError, match=r"restarts is .*; expected steps in ascending order"):
        WarmupCosine(optimizer(), 2, 12, restarts=restarts)


@pytest.mark.parametrize(
    ("restarts", "message"),
    [
        ([12], r"restarts is \[12\]; expected steps below total_steps=12"),
        (3, "restarts is 3; expected a list of steps"),
        (None, "restarts is None; expected a list of steps"),
    ],
)
def test_error_of_restarts_that_come_too_late_or_are_no_list(restarts, message):
    with pytest.raises(InputError, match=message):
        WarmupCosine(optimizer(), 2, 12, restarts=restarts)


class Rates(Callback):
    """Notes the rates of all groups, an item a step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def train(folder, schedule, *, factors=None, interval="step", ckpt_path=None, **options):
    """Train for two batches an epoch; the trainer and the rates of all groups in each step."""
    tiny = TinyMatcher()
    tiny.lr_scheduler, tiny.lr_scheduler_interval = schedule, interval
    tiny.lr_factors = factors or {}
    watch = Rates()
    callbacks = [watch, *options.pop("callbacks", [])]
    trainer = quiet_trainer(folder, callbacks=callbacks, **options)
    trainer.fit(
        tiny, ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1), ckpt_path=ckpt_path
    )
    return trainer, watch.rates


# -------------------------------------------------------------------------------- WarmupCosine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 5), "warmup_steps is -1; expected 0 or more"),
        ((1.5, 5), r"warmup_steps is 1.5; expected a number in \[0, 1\]"),
        ((5, 5), "total_steps is 5; expected more than warmup_steps=5"),
        ((0, 0), "total_steps is 0; expected 1 or more"),
    ],
)
def test_error(arguments, message):
    with pytest.raises(InputError, match=message):
        WarmupCosine(optimizer(), *arguments)


def test_state_dict_round_trip_goes_on_where_it_was():
    first = optimizer()
    schedule = WarmupCosine(first, 2, 10, final=0.1)
    rates = rates_of(schedule, 15)
    assert rates[-1] == pytest.approx(0.2)
    second, third = optimizer(), WarmupCosine(optimizer(), 2, 10, final=0.1)
    resumed = WarmupCosine(second, 2, 10, final=0.1)
    rates_of(third, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(third.state_dict())
    assert resumed.state_dict() == third.state_dict()
    second.load_state_dict(third.optimizer.state_dict())
    assert rates_of(resumed, 10) == rates[5:]


def test_settings_that_differ_from_the_state_are_applied_and_told():
    old, new = WarmupCosine(optimizer(), 2, 10), WarmupCosine(optimizer(), 2, 20, final=0.5)
    rates_of(old, 5)
    with pytest.warns(match="final was 0.0 and is 0.5, length was 10 and is 20; from step 5 on"):
        new.load_state_dict(old.state_dict())
    assert rates_of(new, 15) == rates_of(WarmupCosine(optimizer(), 2, 20, final=0.5), 20)[5:]


@pytest.mark.parametrize(
    ("warmup", "length", "steps"),
    [(3, 20, 3), (0, 20, 0), (0.25, 20, 5), (19, 20, 19), (20, 20, 2), (50, 7, 0)],
)
def test_warmup_of_a_run(warmup, length, steps):
    schedule = WarmupCosine(optimizer(1.0), warmup)
    schedule.set_length(length)
    rates = rates_of(schedule, length + 1)
    assert rates[:steps] == [(step + 1) / steps for step in range(steps)]
    assert rates[steps] == 1
    assert rates == sorted(rates[:steps]) + sorted(rates[steps:], reverse=True)
    assert rates[-1] == 0


@pytest.mark.parametrize(
    ("options", "interval", "length"),
    [
        ({"max_steps": 7}, "step", 7),
        ({"max_steps": -1, "max_epochs": 3}, "step", 6),
        ({"max_steps": 5, "max_epochs": 3}, "step", 5),
        ({"max_steps": -1, "max_epochs": 3, "limit_train_batches": 1}, "step", 3),
        ({"max_steps": -1, "max_epochs": 4, "accumulate_grad_batches": 2}, "step", 4),
        ({"max_steps": -1, "max_epochs": 4, "accumulate_grad_batches": 3}, "step", 4),
        (
            {
                "max_steps": -1,
                "max_epochs": 4,
                "callbacks": [GradientAccumulationScheduler({1: 2, 3: 1})],
            },
            "step",
            6,
        ),
        ({"max_steps": -1, "max_epochs": 3}, "epoch", 3),
        ({"max_steps": 7}, "epoch", 4),
    ],
)
def test_length_is_that_of_the_run(tmp_path, options, interval, length):
    options = options | {"limit_val_batches": 0}
    trainer, rates = train(tmp_path, partial(WarmupCosine, warmup_steps=1), **options,
                           interval=interval)  # fmt: skip
    assert trainer.lr_scheduler_configs[0].scheduler.length == length
    expected = rates_of(WarmupCosine(optimizer(0.1), 1, length), length)
    found = [rate for (rate,) in rates]
    assert found == (
        expected if interval == "step" else [expected[i // 2] for i in range(len(found))]
    )
    assert len(found) == trainer.global_step


def test_length_of_a_run_without_end_is_not_known_and_told_once(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 5

    options = {"max_steps": -1, "max_epochs": -1, "limit_val_batches": 0, "callbacks": [Stop()]}
    with pytest.warns(match="length of the run is not known") as told:
        _, rates = train(tmp_path, partial(WarmupCosine, warmup_steps=2), **options)
    assert sum("length of the run" in str(one.message) for one in told) == 1
    assert [rate for (rate,) in rates] == [0.05, 0.1, 0.1, 0.1, 0.1]
    with pytest.raises(InputError, match=r"warmup_steps is 0.1, a share of a run of unknown"):
        train(tmp_path, partial(WarmupCosine, warmup_steps=0.1), **options)


def test_a_run_that_goes_on_at_rate_0_is_told(tmp_path):
    with pytest.warns(match="total_steps is 3, but the run has 6"):
        train(tmp_path, partial(WarmupCosine, warmup_steps=1, total_steps=3), max_steps=6)


def test_resumed_run_of_another_length_follows_the_new_schedule(tmp_path):
    schedule = partial(WarmupCosine, warmup_steps=2)
    trainer, _ = train(tmp_path, schedule, max_steps=4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    with pytest.warns(match="length was 4 and is 8; from step 4 on"):
        longer, rates = train(tmp_path, schedule, max_steps=8, ckpt_path=tmp_path / "four.ckpt")
    assert [rate for (rate,) in rates] == rates_of(WarmupCosine(optimizer(0.1), 2, 8), 8)[4:]
    whole, _ = train(tmp_path, schedule, max_steps=8)
    ends = [one.lr_scheduler_configs[0].scheduler.state_dict() for one in (longer, whole)]
    assert ends[0] == ends[1]


def test_shipped_configurations_leave_the_length_to_the_run():
    found = {}
    for name in config_names():
        scheduler = load_config(name)["model"]["init_args"].get("lr_scheduler", {})
        if scheduler.get("class_path") == "itmkit.systems.WarmupCosine":
            found[name] = scheduler["init_args"]
    assert {"mate/shapes", "daim/shapes", "tvrn/shapes"} <= found.keys()
    for arguments in found.values():
        assert "total_steps" not in arguments
    schedule = WarmupCosine(optimizer(4e-3), **found["mate/shapes"])
    schedule.set_length(600)  # max_steps of mate/shapes
    expected = [4e-3 * (step + 1) / 50 for step in range(50)]
    expected += [4e-3 * (1 + math.cos(math.pi * step / 550)) / 2 for step in range(550)]
    assert rates_of(schedule, 600) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------ lr_factors


@pytest.mark.parametrize(
    "schedule",
    [
        partial(OneCycleLR, max_lr=0.5, total_steps=9),
        partial(OneCycleLR, max_lr=0.5, total_steps=9, three_phase=True, anneal_strategy="linear"),
        partial(CyclicLR, base_lr=0.01, max_lr=0.5, step_size_up=2, mode="triangular2"),
        partial(ExponentialLR, gamma=0.5),
        partial(CosineAnnealingLR, T_max=9),
        partial(WarmupCosine, warmup_steps=2),
    ],
)
def test_rates_keep_the_ratio_of_lr_factors(tmp_path, schedule):
    options = {"max_steps": 8, "limit_val_batches": 0}
    _, plain = train(tmp_path, schedule, **options)
    trainer, rates = train(tmp_path, schedule, factors={"text": 0.1, "image": 1.0}, **options)
    assert len({rate for (rate,) in plain}) > 3
    assert [main for main, _ in rates] == pytest.approx([rate for (rate,) in plain])
    assert [slow for _, slow in rates] == pytest.approx([0.1 * rate for (rate,) in plain])
    last = trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
    assert last == [group["lr"] for group in trainer.optimizers[0].param_groups]


def test_first_rate_of_a_schedule_with_rates_of_its_own():
    tiny = TinyMatcher()
    tiny.lr_factors = {"text": 0.1}
    tiny.lr_scheduler = partial(OneCycleLR, max_lr=0.5, total_steps=9)
    schedule = tiny.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert schedule.get_last_lr() == pytest.approx([0.02, 0.002])


class OneRate(LRScheduler):
    """A schedule of a user, with a rate of its own."""

    def get_lr(self):
        return [0.3] * len(self.base_lrs)


def one_after_another(optimizer):
    parts = [LinearLR(optimizer), CyclicLR(optimizer, 0.1, 0.5)]
    return SequentialLR(optimizer, parts, milestones=[3])


def nested(optimizer):
    return ChainedScheduler([ChainedScheduler([OneCycleLR(optimizer, 0.5, total_steps=9)])])


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (one_after_another, "CyclicLR"),
        (nested, "OneCycleLR"),
        (partial(SWALR, swa_lr=0.1), "SWALR"),
        (partial(CosineAnnealingLR, T_max=9, eta_min=1e-3), "CosineAnnealingLR, .* eta_min=0.001"),
        (partial(CosineAnnealingWarmRestarts, T_0=9, eta_min=1e-3), "CosineAnnealingWarmRestarts"),
        (OneRate, "OneRate"),
    ],
)
def test_error_of_a_schedule_that_would_lose_lr_factors(schedule, name):
    tiny = TinyMatcher()
    tiny.lr_scheduler = schedule
    tiny.configure_optimizers()
    tiny.lr_factors = {"text": 0.1}
    with pytest.raises(InputError, match=f"lr_scheduler is {name}.* lr_factors would be lost"):
        tiny.configure_optimizers()


# ----------------------------------------------------------------------------- ReduceLROnPlateau

STALLS = {"mode": "max", "patience": 0, "threshold": 1e9, "factor": 0.5}  # nothing is better


@pytest.mark.parametrize(
    "schedule",
    [
        partial(ReduceLROnPlateau, **STALLS),
        partial(MonitoringPlateau, monitor="val/i2t_r1", **STALLS),
        partial(
            MonitoringPlateau,
            monitor="train/loss",
            **(STALLS | {"mode": "min", "threshold": 0.999}),
        ),
    ],
)
def test_plateau_halves_the_rate(tmp_path, schedule):
    options = {"max_steps": 8, "factors": {"text": 0.1}, "interval": "epoch"}
    _, rates = train(tmp_path, schedule, **options)
    assert [main for main, _ in rates[::2]] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    assert [slow for _, slow in rates[::2]] == pytest.approx([0.01, 0.01, 0.005, 0.0025])


def test_plateau_keeps_lr_factors_in_its_least_rate(tmp_path):
    schedule = partial(ReduceLROnPlateau, min_lr=0.05, **(STALLS | {"factor": 0.1}))
    options = {"max_steps": 8, "factors": {"text": 0.1}, "interval": "epoch"}
    assert train(tmp_path, schedule, **options)[1][-1] == pytest.approx([0.05, 0.005])


def test_plateau_waits_for_each_validation(tmp_path):
    schedule = partial(ReduceLROnPlateau, **STALLS)
    options = {"max_steps": 12, "interval": "epoch", "check_val_every_n_epoch": 2}
    _, rates = train(tmp_path, schedule, **options)
    assert [rate for (rate,) in rates[::2]] == pytest.approx([0.1] * 4 + [0.05] * 2)


def test_plateau_of_the_training_loss_by_step(tmp_path):
    stalls = STALLS | {"mode": "min", "threshold": 0.999}
    schedule = partial(MonitoringPlateau, monitor="train/loss", **stalls)
    _, rates = train(tmp_path, schedule, interval="step", max_steps=4, limit_val_batches=0)
    assert [rate for (rate,) in rates] == pytest.approx([0.1, 0.1, 0.05, 0.025])


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (ReduceLROnPlateau, {}, "ReduceLROnPlateau is 'min'; expected 'max' for 'val/rsum'"),
        (
            partial(MonitoringPlateau, monitor="val/t2i_medr", mode="max"),
            {},
            "is 'max'; expected 'min' for 'val/t2i_medr'",
        ),
        (
            partial(MonitoringPlateau, monitor="train/loss", mode="max"),
            {},
            "is 'max'; expected 'min' for 'train/loss'",
        ),
        (
            partial(ReduceLROnPlateau, mode="max"),
            {"interval": "step"},
            "lr_scheduler_interval is 'step'; expected 'epoch' for 'val/rsum'",
        ),
        (
            partial(ReduceLROnPlateau, mode="max"),
            {"limit_val_batches": 0},
            "watches 'val/rsum', but the run has no validation",
        ),
    ],
)
def test_error_of_a_plateau(tmp_path, schedule, options, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path, schedule, **({"interval": "epoch"} | options))
