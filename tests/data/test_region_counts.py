"""Stored regions of which each image has as many as it has: padded in a batch, with a mask."""

from __future__ import annotations

import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quiet_trainer import quiet_trainer
from recorder import fit, same
from systems import SYSTEMS

from itmkit.data import (
    CaptionedFolder,
    ImageTextData,
    PrecompDataset,
    Regions,
    box_relations,
)
from itmkit.data.images import BadSampleError
from itmkit.data.stored_features import extracted_features
from itmkit.retrieval import encode, evaluating

COUNTS = np.array([10, 3, 100, 1, 37, 10, 12, 5])
WIDTH = 437
STARTS = np.concatenate([[0], COUNTS.cumsum()])


def write(folder: Path, split: str = "train", counts: np.ndarray = COUNTS) -> np.ndarray:
    """A folder with the regions of some images, and what is in it."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((counts.sum(), WIDTH)).astype("float16")
    corner = rng.random((counts.sum(), 2)).astype("float32") * 50
    np.save(folder / f"{split}_ims.npy", features)
    np.save(folder / f"{split}_counts.npy", counts)
    np.save(folder / f"{split}_boxes.npy", np.concatenate([corner, corner + 50], 1))
    np.save(folder / f"{split}_img_sizes.npy", np.full((len(counts), 2), 100))
    words = "a red dog runs on the wide beach".split()
    lines = [" ".join(words[: 2 + i % 5]) + f" {words[i % 8]}\n" for i in range(5 * len(counts))]
    (folder / f"{split}_caps.txt").write_text("".join(lines))
    (folder / f"{split}_ids.txt").write_text("".join(f"{i}.jpg\n" for i in range(len(counts))))
    return features


def test_images_are_padded_and_masked(tmp_path: Path) -> None:
    features = write(tmp_path)
    data = PrecompDataset("train", tmp_path)
    assert (len(data), len(data.captions)) == (8, 40)
    rows = [1, 7, 0]
    images = pickle.loads(pickle.dumps(data.source)).read(rows)
    assert images.features.shape == (3, 10, WIDTH)
    assert images.mask.sum(1).tolist() == [3, 5, 10]
    for place, row in enumerate(rows):
        own = slice(STARTS[row], STARTS[row + 1])
        one = data.image(row)
        assert isinstance(one, Regions)
        assert np.array_equal(one.features.numpy(), features[own].astype("float32"))
        assert torch.equal(images.features[place, : COUNTS[row]], one.features)
        assert not images.features[place, COUNTS[row] :].any()
        assert one.boxes is not None
        assert images.boxes is not None
        assert torch.equal(images.boxes[place, : COUNTS[row]], one.boxes)
        assert ((one.boxes[:, 2:] - one.boxes[:, :2]) - 0.5).abs().max() < 1e-5
    assert data.source.read([0, 5]).mask is None  # as many


def test_the_first_regions_alone(tmp_path: Path) -> None:
    features = write(tmp_path)
    data = PrecompDataset("train", tmp_path, max_regions=10)
    images = data.source.read([2, 1])
    assert images.mask is not None
    assert images.mask.sum(1).tolist() == [10, 3]
    assert np.array_equal(images.features[0].numpy(), features[STARTS[2] :][:10].astype("float32"))
    assert images.boxes is not None
    assert images.boxes.shape == (2, 10, 4)


def test_images_by_name_have_their_boxes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t.csv").write_text("image,caption\n4.jpg,a dog\n1.jpg,a cat\n")
    own = CaptionedFolder("train", None, tmp_path / "t.csv", features=tmp_path, shares={"train": 1})
    every = PrecompDataset("train", tmp_path)
    for row, other in ((0, 4), (1, 1)):
        found, expected = own.image(row), every.image(other)
        assert isinstance(found, Regions)
        assert isinstance(expected, Regions)
        assert torch.equal(found.features, expected.features)
        assert found.boxes is not None
        assert expected.boxes is not None
        assert torch.equal(found.boxes, expected.boxes)


def test_boxes_of_images_with_as_many_regions_by_name(tmp_path: Path) -> None:
    boxes = np.zeros((3, 2, 4))
    boxes[:, :, 2:] = np.arange(1, 4)[:, None, None] / 4
    np.save(tmp_path / "dev_ims.npy", np.ones((3, 2, 4), "float32"))
    np.save(tmp_path / "dev_boxes.npy", boxes)
    (tmp_path / "dev_ids.txt").write_text("a\nb\nc\n")
    found = extracted_features("dev", ["c", "a"], tmp_path).read([0, 1]).boxes
    assert found is not None
    assert found[:, 0, 2].tolist() == [0.75, 0.25]


def test_training_leaves_out_regions_and_evaluation_none(tmp_path: Path) -> None:
    write(tmp_path)

    def data(**options: Any) -> ImageTextData:
        dataset = partial(PrecompDataset, root=tmp_path)
        sizes = {"batch_size": 5, "vocabulary_min_count": 1, "val_split": "train"}
        made = ImageTextData(dataset, relation_threshold=0.3, region_drop=0.7, **sizes, **options)
        made.setup("fit")
        return made

    def counts(batch: Any) -> list[int]:
        return batch.images.mask.sum(1).tolist()

    seen = list(data().train_dataloader())
    for batch in seen:
        own = COUNTS[batch.image_ids]
        expected = own - (own * 0.7).astype(int)
        assert counts(batch) == expected.tolist()
        assert torch.equal(
            batch.images.relations.bool(),
            (box_relations(batch.images.boxes, 0.3) > 0)
            & batch.images.mask[:, :, None]
            & batch.images.mask[:, None],
        )
    assert same(data(num_workers=1).train_dataloader(), seen)
    assert not same(data(seed=1).train_dataloader(), seen)
    for batch in data().val_dataloader():
        assert counts(batch) == COUNTS[batch.image_ids].tolist()


def test_order_is_the_same_with_workers_and_after_a_stop(tmp_path: Path) -> None:
    write(tmp_path)

    def run(checkpoint: str | None = None, workers: int = 0) -> Any:
        data = ImageTextData(
            partial(PrecompDataset, root=tmp_path),
            batch_size=7,
            vocabulary_min_count=1,
            relation_threshold=0.3,
            val_split=None,
            num_workers=workers,
        )
        return fit(tmp_path, data, ckpt_path=checkpoint, max_epochs=1)

    whole = run(workers=1)
    assert len(whole.seen) == 5
    for batch in whole.seen:
        images = batch.images
        assert images.mask.sum(1).tolist() == COUNTS[batch.image_ids].tolist()
        assert images.relations.shape == (7, images.mask.shape[1], images.mask.shape[1])
        expected = box_relations(images.boxes, 0.3)
        real = images.mask[:, :, None] & images.mask[:, None, :]
        assert torch.equal(images.relations, expected * real)
    resumed = run(str(tmp_path / "saved" / "step=2.ckpt"))
    assert same(resumed.seen, whole.seen[2:])


@pytest.mark.parametrize("system", ["mate", "mate_matching_head", "daim", "tvrn_sgr"])
def test_systems_learn_from_them_and_padding_does_not_count(system: str, tmp_path: Path) -> None:
    write(tmp_path)
    torch.manual_seed(0)
    matcher = SYSTEMS[system].make()
    data = partial(
        ImageTextData,
        partial(PrecompDataset, root=tmp_path),
        caption_views=SYSTEMS[system].views,
        vocabulary_min_count=1,
        relation_threshold=0.3,
    )
    before = torch.cat([one.detach().flatten() for one in matcher.parameters()])
    quiet_trainer(tmp_path, max_steps=2).fit(matcher, data(batch_size=8, val_split=None))
    after = torch.cat([one.detach().flatten() for one in matcher.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    found = []
    with evaluating(matcher):
        for size in (1, 3, 8):
            gallery = encode(matcher, data(eval_batch_size=size).evaluation_dataloader("train"))
            found.append(matcher.score(gallery.images, gallery.texts))
            assert found[-1].shape == (8, 40)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("counts", COUNTS[:-1], "train_counts.npy has 173 regions in all; expected 178, the rows"),
        ("counts", np.append(COUNTS[:-1], [0, 5]), "train_counts.npy has 0 regions in row 7"),
        ("counts", COUNTS.astype("float32"), "has float32 of the shape (8,); expected integers"),
        (
            "ims",
            np.ones((8, 4, 6), "float32"),
            "train_ims.npy has the shape (8, 4, 6); expected ra",
        ),
        ("boxes", np.ones((8, 4)), "train_boxes.npy has the shape (8, 4); expected (178, 4)"),
        ("img_sizes", np.ones((178, 2)), "img_sizes.npy has the shape (178, 2); expected (8, 2)"),
        ("img_sizes", np.ones((8, 2)), "train_boxes.npy goes from"),
        ("iou", np.ones((8, 9, 9)), "train_iou.npy is of images with as many regions each"),
    ],
)
def test_faults(name: str, content: np.ndarray, told: str, tmp_path: Path) -> None:
    write(tmp_path)
    np.save(tmp_path / f"train_{name}.npy", content)
    with pytest.raises(ValueError, match=re.escape(told)):
        PrecompDataset("train", tmp_path)


def test_a_value_that_is_not_finite(tmp_path: Path) -> None:
    features = write(tmp_path)
    features[STARTS[2] + 7, 3] = np.inf
    np.save(tmp_path / "train_ims.npy", features)
    data = PrecompDataset("train", tmp_path)
    with pytest.raises(BadSampleError, match="not finite in row 2: inf in its region 7"):
        data.source.read([0, 2])
    assert len(data.source.read([0, 1])) == 2
