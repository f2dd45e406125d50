"""Two and three real processes (gloo) run this file as a script; the tests compare with one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.distributed import gather, world_size
from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    Distributed,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    MomentumDistillationLoss,
    TripletLoss,
)

IDS = torch.tensor([0, 1, 2, 3, 3, 0, 4])  # the image of each pair; a pair comes in two views
SHARES = {2: (3, 4), 3: (3, 0, 4)}  # pairs of each rank
KINDS: dict[str, type[nn.Module]] = {}


class Model(nn.Module):
    """Image and text encoder with a loss of any kind, as somebody else would put them in DDP."""

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = (nn.Linear(6, 4).double() for _ in range(2))
        self.loss = Distributed(self.make_loss())

    def make_loss(self) -> nn.Module:
        raise NotImplementedError

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Own images against the captions of all ranks."""
        return self.image(x) @ gather(self.text(y)).T


class VectorTriplet(Model):
    """A loss of vectors that makes the scores itself."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, image: Tensor, text: Tensor, ids: Tensor, margin: Tensor) -> Tensor:
            scores = self.scale * image @ text.T
            return TripletLoss(0.3, "all")(scores, ids[:, None] == ids) + margin * scores.mean()

    make_loss = Loss

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.image(x), self.text(y), ids=ids, margin=torch.tensor(0.7))


class RowTriplet(Model):
    make_loss = TripletLoss

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.scores(x, y), positives=ids[:, None] == gather(ids))


class RowHinge(Model):
    """The diagonal of the gathered rows holds the pairs."""

    make_loss = HingeCrossEntropyLoss

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.scores(x, y), None)


class RowAdaptiveMargin(Model):
    def make_loss(self) -> nn.Module:
        return AdaptiveMarginTripletLoss(0.4, min_rows=2, negatives="all")

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.scores(x, y) + 9 * ids[:, None].eq(gather(ids)))


class Group(Model):
    make_loss = GroupTripletLoss

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.scores(x, y), image_ids=ids[::2].tolist())


class HECT(Model):
    def make_loss(self) -> nn.Module:
        return HECTLoss(num_hard_negatives=2)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.image(x), self.text(y), ids.numpy())


class Distillation(Model):
    def make_loss(self) -> nn.Module:
        return MomentumDistillationLoss(feature_weight=1.0)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return self.loss(self.image(x), self.text(y), x[:, :4], y[:, :4], ids)


class DistillationWithQueue(Distillation):
    """A queue that is the same on all ranks, given by place and by name."""

    def __init__(self) -> None:
        super().__init__()
        names = ["queue_image", "queue_text", "queue_ids"]
        self.loss = Distributed(self.loss.loss, replicated=names)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        queue_image, queue_text = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)
        own = self.image(x), self.text(y), x[:, :4], y[:, :4], ids
        return self.loss(*own, queue_image, queue_text, queue_ids=torch.tensor([0, 3, 8]))


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Two views of every image and caption, adjacent."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 2 * len(IDS), 6, dtype=torch.float64, generator=generator)
    return x, y, IDS.repeat_interleave(2)


def result(model: nn.Module, loss: Tensor) -> dict[str, Any]:
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "buffers": dict(model.named_buffers())}


def run(folder: Path) -> None:
    rank = join(folder)
    shares = [2 * count for count in SHARES[world_size()]]
    own = [tensor.split(shares)[rank] for tensor in pairs()]
    found = {}
    for name, kind in KINDS.items():
        model = kind()
        wrapped = nn.parallel.DistributedDataParallel(model)
        found[name] = result(model, wrapped(*own))
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, size=request.param)
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(request.param)]


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_loss_and_gradients_are_those_of_one_process(found, kind):
    model = KINDS[kind]()
    expected = result(model, model(*pairs()))
    assert expected["loss"] > 0.1
    for own in found:
        torch.testing.assert_close(own[kind], expected, atol=1e-10, rtol=1e-10)
        assert all(gradient.any() for gradient in own[kind]["gradients"].values())


def test_smoke_one_process_is_the_loss_itself():
    image, text = torch.randn(2, 4, 8)
    ids = torch.tensor([0, 1, 1, 2])
    loss = Distributed(HECTLoss())
    assert torch.equal(loss(image, text, ids), HECTLoss()(image, text, ids))
    assert torch.equal(loss(image, text=text), HECTLoss()(image, text))


def test_an_argument_too_many_is_the_losss_own_error():
    with pytest.raises(TypeError, match="positional arguments"):
        Distributed(TripletLoss())(torch.eye(3), None, 3)
    with pytest.raises(TypeError, match="'scale'"):
        Distributed(TripletLoss())(torch.eye(3), scale=2)


def test_error_of_an_argument_that_the_loss_has_not():
    with pytest.raises(
        ValueError, match=r"replicated has 'queue'; .* of TripletLoss, which are \['scores', 'pos"
    ):
        Distributed(TripletLoss(), replicated=["queue"])


def test_state_dict_round_trip():
    loss = Distributed(AdaptiveMarginTripletLoss(0.3))
    assert list(loss.state_dict()) == ["loss.margin"]
    other = Distributed(AdaptiveMarginTripletLoss())
    other.load_state_dict(loss.state_dict())
    assert other.loss.margin == loss.loss.margin


def test_compile():
    loss = Distributed(HECTLoss())
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    image, text = torch.randn(2, 4, 8)
    torch.testing.assert_close(compiled(image, text), loss(image, text))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
