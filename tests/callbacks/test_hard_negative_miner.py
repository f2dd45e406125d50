from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from quiet_trainer import quiet_trainer
from stopped_runs import Stop, assert_equal, snapshot
from torch.utils.data import DataLoader

from itmkit.callbacks import HardNegativeMiner
from itmkit.callbacks.hard_negative_miner import mine
from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.data.images import BadSampleError
from itmkit.data.order import EpochOrder, mixed_seed
from itmkit.data.rival_groups import Rivals, rival_groups
from itmkit.nn import BiGRU, CrossAttentionFusion, RegionProjection
from itmkit.retrieval import encode
from itmkit.systems import MATE
from itmkit.training import ExactResume

DIM, BATCHES = 16, 5  # of an epoch: 40 captions in batches of 8


def make_data(**options: Any) -> ImageTextData:
    dataset = partial(ShapesDataset, length=8, image_size=32, regions=True)
    options = {"batch_size": 8, "eval_batch_size": 3, "caption_views": 2} | options
    return ImageTextData(dataset, distinct_captions=True, **options)


def make_mate(**options: Any) -> MATE:
    torch.manual_seed(0)
    images, texts = RegionProjection(437, DIM, hidden_dim=DIM), BiGRU(64, DIM, DIM)
    options = {"fusion_group": 4, "fusion_start": 5} | options
    return MATE(images, texts, CrossAttentionFusion(DIM, num_heads=2), **options)


def test_mined_naive_reference() -> None:
    data, mate = make_data(), make_mate()
    dataset = data.split("train")
    gallery = encode(mate, data.evaluation_dataloader("train"))
    scores = gallery.images.vector @ gallery.texts.vector.T
    true = dataset.relevance(torch.arange(8), torch.arange(40))
    rivals = mine(mate, gallery, dataset.relevance, 3, size=(8, 40))
    for i in range(8):
        wrong = sorted((j for j in range(40) if not true[i, j]), key=lambda j: -scores[i, j])
        kept = rivals.captions[i].tolist()
        assert scores[i, kept].tolist() == pytest.approx(scores[i, wrong[:3]].tolist(), abs=2e-3)
        assert not true[i, kept].any()
    for j in range(40):
        wrong = sorted((i for i in range(8) if not true[i, j]), key=lambda i: -scores[i, j])
        kept = [one for one in rivals.images[j].tolist() if one >= 0]
        best = wrong[:3]
        assert scores[kept, j].tolist() == pytest.approx(scores[best, j].tolist(), abs=2e-3)
        assert not true[kept, j].any()


def test_shares_of_the_batches_are_the_whole() -> None:
    data = make_data()
    whole = [batch.image_ids.tolist() for batch in data.evaluation_dataloader("train")]
    shares = [data.evaluation_dataloader("train", share=(part, 2)) for part in range(2)]
    assert [batch.image_ids.tolist() for one in shares for batch in one] == whole


def test_random_share_falls_over_batches() -> None:
    miner = HardNegativeMiner(start_epoch=1, hardening=10)
    shares = [miner.random_share(epoch, 5) for epoch in (1, 2, 3)]
    torch.testing.assert_close(torch.cat(shares[:2]), 1 - torch.arange(10) / 10)
    assert not shares[2].any()
    assert not HardNegativeMiner().random_share(0, 5).any()


def test_two_processes_see_the_batches_of_one() -> None:
    rows = torch.randint(40, (40,))
    orders = [
        EpochOrder(40, batch_size=8, seed=0),
        *(EpochOrder(40, batch_size=4, seed=0, num_replicas=2, rank=rank) for rank in range(2)),
    ]
    for order in orders:
        order.chosen = rows
    one, *two = ([row for _, row in order] for order in orders)
    assert one == rows.tolist()
    halves = [torch.tensor(half).view(5, 4) for half in two]
    assert torch.cat(halves, 1).flatten().tolist() == one


def fit(folder: Path, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> MATE:
    seed_everything(1)
    mate = make_mate(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    miner = HardNegativeMiner(4, top_k=4, start_epoch=1, hardening=6, **options)
    trainer = quiet_trainer(
        folder,
        max_steps=4 * BATCHES,
        limit_val_batches=0,
        callbacks=[ExactResume(), miner, *callbacks],
    )
    trainer.fit(mate, make_data(), ckpt_path=ckpt_path, weights_only=True)
    return mate


@pytest.mark.parametrize("every_n_epochs", [0, 1])
def test_resumed_anywhere_is_the_run_not_stopped(tmp_path: Path, every_n_epochs: int) -> None:
    whole = fit(tmp_path, every_n_epochs=every_n_epochs)
    for batches in (4, 8, 10, 17):
        path = tmp_path / f"{batches}.ckpt"
        fit(tmp_path, Stop(path, batches), every_n_epochs=every_n_epochs)
        resumed = fit(tmp_path, ckpt_path=path, every_n_epochs=every_n_epochs)
        assert_equal(snapshot(resumed), snapshot(whole))


def test_mined_epochs_differ_from_random_ones(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watch(HardNegativeMiner):
        def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, index: int) -> None:
            seen.append(batch.text_ids[::2].tolist())

    miner = Watch(4, top_k=4, start_epoch=1)
    trainer = quiet_trainer(tmp_path, max_steps=10, limit_val_batches=0, callbacks=[miner])
    data = make_data()
    trainer.fit(make_mate(), data)
    first, second = torch.tensor(seen).view(2, 40).tolist()
    assert sorted(first) == list(range(40))
    own = data.split("train").caption_images
    groups = torch.tensor(second).view(10, 4)
    assert len(groups[:, 0].unique()) == 10
    for group in groups:
        true = data.split("train").relevance(own[group], group)
        assert torch.equal(true, torch.eye(4, dtype=torch.bool))


def rows_of_epochs(folder: Path, seed: int) -> tuple[HardNegativeMiner, list[torch.Tensor]]:
    """A miner of three epochs, and the rows of each."""
    rows: list[torch.Tensor] = []

    class Watch(HardNegativeMiner):
        def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
            rows.append(self.state_dict()["rows"].view(10, 4))

    miner = Watch(4, top_k=4, every_n_epochs=0)
    trainer = quiet_trainer(folder, max_steps=3 * BATCHES, limit_val_batches=0, callbacks=[miner])
    trainer.fit(make_mate(), make_data(seed=seed))
    return miner, rows


def test_groups_follow_from_seed_and_epoch(tmp_path: Path) -> None:
    dataset = make_data().split("train")
    for seed in (0, 7):
        miner, rows = rows_of_epochs(tmp_path, seed)
        assert len(rows) == 3
        for epoch, found in enumerate(rows):
            expected = rival_groups(
                Rivals(**miner.state_dict()["rivals"]),
                dataset.caption_images,
                dataset.relevance,
                groups=10,
                size=4,
                temperature=0.05,
                random_share=torch.zeros(10),
                generator=torch.Generator().manual_seed(mixed_seed(seed, epoch, 40)),
            )
            assert found.equal(expected)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, {"batch_size": 10}, "batch_size is 10; expected a multiple of group_size, 4"),
        ({}, {"bucket_batches": 2}, "bucket_batches is 2; expected 0 for HardNegativeMiner"),
        ({"group_size": 2}, {}, "fusion_group is 4; expected 2, the group_size"),
    ],
)
def test_error_at_the_start(
    tmp_path: Path, options: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    miner = HardNegativeMiner(**{"group_size": 4} | options)
    trainer = quiet_trainer(tmp_path, callbacks=[miner])
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_mate(), make_data(**data))


def test_error_of_other_data(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[HardNegativeMiner(4)])
    batches = list(make_data().train_dataloader())
    with pytest.raises(ValueError, match="expected an ImageTextData, for HardNegativeMiner"):
        trainer.fit(make_mate(), DataLoader(batches, batch_size=None))


def test_error_of_excluded_captions() -> None:
    data = make_data()
    data.exclude = "names.csv"
    trainer: Any = SimpleNamespace(datamodule=data, overfit_batches=0)
    with pytest.raises(ValueError, match=r"exclude is 'names.csv'; expected none"):
        HardNegativeMiner(4).on_fit_start(trainer, make_mate())


def test_error_of_overfit_batches(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, overfit_batches=1, callbacks=[HardNegativeMiner(4)])
    with pytest.raises(ValueError, match=r"trainer.overfit_batches is 1; expected 0"):
        trainer.fit(make_mate(), make_data())


class LastIsBroken(ShapesDataset):
    def image(self, row: int) -> torch.Tensor:
        if row == len(self) - 1:
            raise BadSampleError("the last one is not readable")
        return super().image(row)


@pytest.mark.filterwarnings("ignore:skipped")
def test_images_that_are_skipped_have_no_rivals(tmp_path: Path) -> None:
    dataset = partial(LastIsBroken, length=8, image_size=32, regions=True)
    options: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 3, "caption_views": 2}
    data = ImageTextData(dataset, distinct_captions=True, on_error="skip", **options)
    miner = HardNegativeMiner(4, top_k=4)
    trainer = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=[miner])
    trainer.fit(make_mate(), data)
    rivals = miner.state_dict()["rivals"]
    assert [len(rivals[side]) for side in ("captions", "images")] == [8, 40]
    assert (rivals["captions"][7] == -1).all()
    assert (rivals["images"][data.split("train").caption_images == 7] == -1).all()
    assert (rivals["captions"][:7] >= 0).all()
    assert not (rivals["images"] == 7).any()


@pytest.mark.filterwarnings("ignore:.*bf16")
def test_mixed_precision_mines_what_it_ranks_by(tmp_path: Path) -> None:
    mate, miner = make_mate(), HardNegativeMiner(4, top_k=4)
    trainer = quiet_trainer(
        tmp_path, max_steps=1, limit_val_batches=0, precision="bf16-mixed", callbacks=[miner]
    )
    expected = mine_in_bf16(mate)
    trainer.fit(mate, make_data())
    rivals = miner.state_dict()["rivals"]
    for name, value in vars(expected).items():
        assert rivals[name].equal(value), name


def mine_in_bf16(mate: MATE) -> Rivals:
    data = make_data()
    with torch.autocast("cpu", torch.bfloat16):
        gallery = encode(mate, data.evaluation_dataloader("train"))
    return mine(mate, gallery, data.split("train").relevance, 4, size=(8, 40))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "nan"), (1e6, "inf")],  # the second is finite, but not in fp16
)
def test_error_of_scores_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, shown: str
) -> None:
    score = MATE.score

    def broken(self: MATE, images: Any, texts: Any) -> torch.Tensor:
        return score(self, images, texts).index_fill(1, torch.tensor(9), value)

    mate, miner = make_mate(), HardNegativeMiner(4, start_epoch=1)
    monkeypatch.setattr(MATE, "score", broken)
    trainer = quiet_trainer(tmp_path, max_steps=2 * BATCHES, limit_val_batches=0, callbacks=[miner])
    message = (
        f"^HardNegativeMiner, in epoch 1: the score of image 0 and caption 9, in fp16, is {shown}"
    )
    with pytest.raises(InputError, match=message):
        trainer.fit(mate, make_data())
    assert miner.state_dict() == {}  # nothing was mined


def test_error_of_an_argument() -> None:
    with pytest.raises(ValueError, match="group_size is 1; expected 2 or more"):
        HardNegativeMiner(1)
    with pytest.raises(ValueError, match="temperature is 0; expected a finite number above 0"):
        HardNegativeMiner(temperature=0)
