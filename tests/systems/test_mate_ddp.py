"""MATE's loss and gradients in two processes are those of one process on the same global batch."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.data import Batch, Images, ImageTextData, ShapesDataset, Texts
from itmkit.nn import BiGRU, FusionEncoder, MatchingHead, RegionProjection
from itmkit.systems import MATE

DIM = 16
CASES: dict[str, dict[str, Any]] = {
    "one_view": {"views": 1, "distillation_weight": 0.0},
    "two_views": {"views": 2, "distillation_weight": 0.0},
    "teacher": {"views": 2, "distillation_weight": 1.0, "queue_size": 6},
    "matching_head": {"views": 1, "distillation_weight": 0.0, "matching_head": True},
    "few_pairs": {"views": 2, "distillation_weight": 0.0, "fusion_pairs": 3},
}


def make_mate(case: str) -> MATE:
    torch.manual_seed(0)
    options = {**CASES[case]}
    if options.get("matching_head"):
        options["matching_head"] = MatchingHead(DIM)
    mate = MATE(
        RegionProjection(437, DIM, hidden_dim=DIM),
        BiGRU(64, DIM, DIM),
        FusionEncoder(DIM, num_layers=1, num_heads=2, dropout=0.0, attention_dropout=0.0),
        token_drop=0.0,
        warmup=0,
        **options,
    ).double()
    if mate.weights["distillation"]:
        names = ("image_encoder", "text_encoder", "image_pool", "text_pool")
        teacher = {name: copy.deepcopy(getattr(mate, name)).eval() for name in names}
        for module in teacher.values():
            for parameter in module.parameters():
                parameter.data.mul_(0.8)
        mate.teacher = SimpleNamespace(**teacher)
        mate.queue_image.normal_()
        mate.queue_text.normal_()
        mate.queue_ids[:4] = torch.tensor([0, 1, 2, 99])
    return mate


def make_batch(case: str) -> Batch:
    """Seven pairs, two of one image among them on rank 1, and two more on both ranks."""
    dataset = partial(ShapesDataset, length=8, regions=True)
    data = ImageTextData(dataset, batch_size=7, caption_views=CASES[case]["views"], seed=5)
    batch = next(iter(data.train_dataloader()))
    batch.images.features = batch.images.features.double()
    return batch


def share(batch: Batch, rank: int) -> Batch:
    """Four images for rank 0 and three for rank 1, each padded to its own longest only."""
    views = len(batch.texts) // len(batch)
    rows = slice(0, 4) if rank == 0 else slice(4, 7)
    texts = slice(rows.start * views, rows.stop * views)
    assert batch.images.mask is not None
    regions, words = batch.images.mask[rows], batch.texts.mask[texts]
    most, longest = int(regions.sum(1).max()), int(words.sum(1).max())
    return Batch(
        Images(batch.images.features[rows, :most], regions[:, :most]),
        Texts(batch.texts.ids[texts, :longest], words[:, :longest]),
        batch.image_ids[rows],
        batch.text_image_ids[texts],
        batch.text_ids[texts],
    )


class Loss(nn.Module):
    """What DDP wraps: the loss as the output of forward."""

    def __init__(self, mate: MATE) -> None:
        super().__init__()
        self.mate = mate

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.mate.loss(batch)


def gradients(mate: MATE) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in mate.named_parameters() if p.requires_grad}


def run(folder: Path) -> None:
    rank = join(folder)
    found = {}
    for case in CASES:
        mate, batch = make_mate(case), share(make_batch(case), rank)
        model = nn.parallel.DistributedDataParallel(Loss(mate))
        terms = model(batch)
        terms["loss"].backward()
        terms = {name: term.detach() for name, term in terms.items()}
        found[case] = {
            "terms": terms,
            "gradients": gradients(mate),
            "sizes": [batch.images.features.shape[1], batch.texts.ids.shape[1]],
        }
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_ddp_loss_and_gradients_are_those_of_one_process(
    found: list[dict[str, Any]], case: str
) -> None:
    mate = make_mate(case)
    terms = mate.loss(make_batch(case))
    terms["loss"].backward()
    expected = gradients(mate)
    assert terms["fusion"] > 0
    assert len(terms) == 4 + (case == "teacher")
    for own in found:
        assert own[case]["terms"].keys() == terms.keys()
        for name, term in terms.items():
            torch.testing.assert_close(
                own[case]["terms"][name], term.detach(), atol=1e-10, rtol=1e-10
            )
        assert own[case]["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient is not None, name
            torch.testing.assert_close(
                own[case]["gradients"][name], gradient, atol=1e-8, rtol=1e-8, msg=name
            )


def test_ddp_ranks_were_padded_to_different_lengths(found: list[dict[str, Any]]) -> None:
    """So that the tests above see tokens of unequal lengths, of images and of captions."""
    (regions, words), (other_regions, other_words) = (own["two_views"]["sizes"] for own in found)
    assert regions != other_regions
    assert words != other_words


if __name__ == "__main__":
    run(Path(sys.argv[1]))
