"""Bad images are an error, or are left out: counted, and the same ones on every way to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from recorder import same
from torch import Tensor
from torch._utils import ExceptionWrapper

from itmkit.data import module
from itmkit.data.batch import Batch
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.images import BadSampleError
from itmkit.data.karpathy import KarpathyDataset
from itmkit.data.module import ImageTextData
from itmkit.data.precomp import PrecompDataset

Photos = Callable[..., tuple[Path, Path]]
BAD = (2, 5)


class SomeBad(ImageTextDataset):
    """Twelve images of two captions, of which the named rows cannot be used."""

    def __init__(self, split: str, *, bad: tuple[int, ...] = BAD) -> None:
        names = [f"{row}.jpg" for row in range(12)]
        captions = [f"caption {row}" for row in range(24)]
        super().__init__(split, names, captions, torch.arange(12).repeat_interleave(2))
        self.bad = bad

    def image(self, row: int) -> Tensor:
        if row in self.bad:
            raise BadSampleError(f"{row}.jpg is not readable")
        return torch.full((3, 2, 2), float(row)) + torch.rand(3, 2, 2) / 2


def data_of(dataset: Any = SomeBad, **options: Any) -> ImageTextData:
    options = {"batch_size": 4, "eval_batch_size": 3, "vocabulary_min_count": 1, **options}
    return ImageTextData(dataset, **{"on_error": "skip", **options})


@pytest.mark.filterwarnings("ignore:skipped")
def test_training_rows_of_bad_images_get_others_and_all_other_rows_stay() -> None:
    data = data_of()
    batches = list(data.train_dataloader())
    whole = list(data_of(partial(SomeBad, bad=())).train_dataloader())
    assert [len(batch) for batch in batches] == [4] * 6
    train = data.split("train")
    replaced = 0
    for batch, expected in zip(batches, whole, strict=True):
        assert torch.equal(train.caption_images[batch.text_ids], batch.image_ids)
        assert torch.equal(batch.images.features[:, 0, 0, 0].long(), batch.image_ids)
        for row, image in enumerate(expected.image_ids.tolist()):
            if image in BAD:
                assert int(batch.image_ids[row]) not in BAD
                replaced += 1
            else:
                assert batch.text_ids[row] == expected.text_ids[row]
                assert torch.equal(batch.images.features[row], expected.images.features[row])
    assert replaced == 4
    assert sorted(skip.name for skip in data.skipped) == ["2.jpg", "5.jpg"]


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_stands_for_a_bad_image_follows_from_seed_and_epoch() -> None:
    whole = list(data_of().train_dataloader())
    data = data_of(num_workers=2)
    assert same(data.train_dataloader(), whole)
    assert sorted(skip.name for skip in data.skipped) == ["2.jpg", "5.jpg"]
    assert not same(data_of(seed=1).train_dataloader(), whole)

    loader = data_of().train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 2})
    assert same(loader, whole[2:])

    parts = []
    for rank in range(2):
        half = data_of(batch_size=2)
        options = {"overfit_batches": 0, "world_size": 2, "global_rank": rank}
        half.trainer = SimpleNamespace(**options)  # type: ignore[assignment]
        parts.append(list(half.train_dataloader()))
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(batch.text_ids, torch.cat([left.text_ids, right.text_ids]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.filterwarnings("ignore:skipped")
def test_evaluation_leaves_out_bad_images_with_their_captions(size: int, workers: int) -> None:
    data = data_of(eval_batch_size=size, num_workers=workers)
    for _ in range(2):
        batches = list(data.val_dataloader())
        assert len(batches) == {1: 10, 3: 4}[size]
        images = [row for row in range(12) if row not in BAD]
        assert torch.cat([batch.image_ids for batch in batches]).tolist() == images
        captions = torch.cat([batch.text_ids for batch in batches]).tolist()
        assert captions == [2 * row + i for row in images for i in range(2)]
    assert data.skipped == [
        ("val", "2.jpg", "2.jpg is not readable"),
        ("val", "5.jpg", "5.jpg is not readable"),
    ]


def test_each_skipped_image_is_told_once() -> None:
    data = data_of(num_workers=1)
    with pytest.warns(UserWarning, match=r"skipped: \d.jpg is not readable") as told:
        assert len(list(data.val_dataloader())) == len(list(data.val_dataloader())) == 4
    assert len(told) == 2


def test_error_of_a_bad_image_unless_skipped() -> None:
    data = data_of(on_error="raise")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(BadSampleError, match=r"[25].jpg is not readable"):
            list(loader)
    assert data.skipped == []
    try:
        raise BadSampleError("2.jpg is not readable")
    except BadSampleError:
        from_a_worker = ExceptionWrapper(where="in a worker")
    with pytest.raises(BadSampleError, match=r"2.jpg is not readable"):
        from_a_worker.reraise()


@pytest.mark.filterwarnings("ignore:skipped")
def test_error_where_most_images_are_bad() -> None:
    """A disk that is gone is no bad sample."""
    data = data_of(partial(SomeBad, bad=tuple(range(1, 12))))
    message = "7 of the 12 images of the split 'val' were skipped; expected at most half"
    with pytest.raises(ValueError, match=message):
        list(data.val_dataloader())
    data = data_of(partial(SomeBad, bad=tuple(range(12))))
    with pytest.raises(ValueError, match=r"100 images drawn at random cannot be used, the last"):
        list(data.train_dataloader())


def test_error_of_another_policy() -> None:
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected one of 'raise', 'skip'"):
        data_of(on_error="ignore")


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_photos_that_go_bad_under_the_run(photos: Photos, policy: str) -> None:
    annotations, images = photos({"train": 5, "val": 5})
    dataset = partial(
        KarpathyDataset, annotations=annotations, images=images, image_size=8, train_augment=False
    )
    data = data_of(dataset, on_error=policy, batch_size=25)
    data.setup("fit")
    (images / "val_1.jpg").unlink()
    cut = (images / "val_3.jpg").read_bytes()[:400]
    (images / "val_3.jpg").write_bytes(cut)
    if policy == "raise":
        with pytest.raises(BadSampleError, match=r"val_1.jpg is missing, or not a file"):
            list(data.val_dataloader())
        return
    with pytest.warns(UserWarning, match="skipped"):
        batches = list(data.val_dataloader())
    assert torch.cat([batch.image_ids for batch in batches]).tolist() == [0, 2, 4]
    assert [skip.name for skip in data.skipped] == ["val_1.jpg", "val_3.jpg"]
    assert len(list(data.train_dataloader())) == 1


def test_feature_rows_are_skipped_but_never_a_feature_file(tmp_path: Path) -> None:
    features = np.ones((6, 4, 3), dtype="float32")
    features[1] = np.nan
    path = tmp_path / "val_ims.npy"
    np.save(path, features)
    (tmp_path / "val_caps.txt").write_text("a dog\n" * 30)
    words = {"train_split": "val"}
    data = data_of(partial(PrecompDataset, root=tmp_path), **words)
    with pytest.warns(UserWarning, match=r"val_ims.npy has a value that is not finite in row 1"):
        assert sum(map(len, data.val_dataloader())) == 5
    np.save(path, features[:5])
    with pytest.raises(ValueError, match=r"val_ims.npy was changed while it was in use") as caught:
        list(data.val_dataloader())
    assert not isinstance(caught.value, BadSampleError)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"val_ims.npy is not a whole .npy file"):
        data_of(partial(PrecompDataset, root=tmp_path), **words).setup("validate")


@pytest.mark.filterwarnings("ignore:skipped")
def test_skipped_images_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of()
    assert data.write_skipped(tmp_path) is None
    list(data.val_dataloader())
    assert data.write_skipped(None) is None
    path = data.write_skipped(tmp_path)
    own = [
        {"split": "val", "name": f"{row}.jpg", "reason": f"{row}.jpg is not readable"}
        for row in BAD
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["skipped.json"]
    assert path is not None
    assert json.loads(path.read_text()) == own

    def gather(found: list[Any], mine: Any) -> None:
        found[:] = [mine, {("val", "0.jpg"): module.Skipped("val", "0.jpg", "gone"), **mine}]

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_gather_object", gather)
    data.write_skipped(tmp_path)
    everyone = [{"split": "val", "name": "0.jpg", "reason": "gone"}, *own]
    assert json.loads(path.read_text()) == everyone
    monkeypatch.setattr(module, "rank", lambda: 1)
    assert data.write_skipped(tmp_path / "another") is None


class Counting(LightningModule):
    """Trains one number, and counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.judged = 0, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained += len(batch)
        return self.weight * batch.images.features.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.judged += len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_trainer_goes_on_where_whole_batches_are_left_out() -> None:
    data, model = data_of(eval_batch_size=1), Counting()
    trainer = Trainer(accelerator="cpu", max_epochs=2, barebones=True)
    trainer.fit(model, data)
    assert (model.trained, model.judged) == (2 * 24, 2 * 10)
    names = {(split, name) for split in ("train", "val") for name in ("2.jpg", "5.jpg")}
    assert {skip[:2] for skip in data.skipped} == names
