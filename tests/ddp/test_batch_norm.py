"""BatchNorm layers of a model, with the statistics of all processes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.distributed import gather
from itmkit.nn import synchronise_batch_norm

ROWS = {0: slice(0, 4), 1: slice(4, 7)}  # of a global batch of seven


class Untracked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))


class Averaging(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3), nn.BatchNorm1d(3, momentum=None, affine=False))


def make(case: str) -> tuple[nn.Module, Tensor]:
    """A model with BatchNorm, and a global batch for it."""
    torch.manual_seed(3)
    if case.startswith("test_"):  # of timm, those with an activation in their BatchNorm among them
        model = timm.create_model(case, num_classes=0)
        return model.double(), torch.randn(7, 3, 32, 32, dtype=torch.float64)
    model = {"untracked": Untracked, "averaging": Averaging}[case]()
    return model.double(), torch.randn(7, 5, dtype=torch.float64)


CASES = ("test_byobnet", "test_resnet", "untracked", "averaging")


def result(model: nn.Module, features: Tensor) -> dict[str, Any]:
    """Two steps: loss of the global batch, gradients and buffers."""
    losses = []
    for _ in range(2):
        out = gather(model(features))
        loss = (out @ out.T).softmax(1).diagonal().log().mean()
        loss.backward()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "evaluated": model.eval()(features).detach(),
    }


def run(folder: Path) -> None:
    rank = join(folder)
    found = {}
    for case in CASES:
        model, features = make(case)
        synchronise_batch_norm(model)
        own = result(nn.parallel.DistributedDataParallel(model), features[ROWS[rank]])
        assert all(module.training is False for module in model.modules())
        found[case] = own
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_ddp_is_one_process_on_the_global_batch(found: list[dict[str, Any]], case: str) -> None:
    expected = result(*make(case))
    for rank, own in enumerate(ranks[case] for ranks in found):
        torch.testing.assert_close(own["losses"], expected["losses"])
        for kind in ("gradients", "buffers"):
            prefixed = {f"module.{name}": value for name, value in expected[kind].items()}
            assert own[kind].keys() == prefixed.keys()
            for name, value in prefixed.items():
                torch.testing.assert_close(own[kind][name], value, atol=1e-9, rtol=1e-9, msg=name)
        if case != "untracked":  # which evaluates by the statistics of its batch
            evaluated = expected["evaluated"][ROWS[rank]]
            torch.testing.assert_close(own["evaluated"], evaluated)


def test_one_process_and_handles() -> None:
    """Nothing changes in one process, and nothing is left behind."""
    model, features = make("test_byobnet")
    plain = copy.deepcopy(model)
    handles = synchronise_batch_norm(model)
    assert handles
    assert torch.equal(model(features), plain(features))
    for handle in handles:
        handle.remove()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


if __name__ == "__main__":
    run(Path(sys.argv[1]))
