from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.nn import MaskedBatchNorm


def batch() -> tuple[Tensor, Tensor]:
    x = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)) + 2
    return x.double(), torch.arange(6) < torch.tensor([6, 2, 0, 5])[:, None]


def test_matches_batch_norm_of_the_real_tokens() -> None:
    x, mask = batch()
    ours, theirs = MaskedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    for _ in range(3):
        a = x.clone().requires_grad_()
        b = x.clone().requires_grad_()
        out, expected = ours(a, mask)[mask], theirs(b[mask])
        torch.testing.assert_close(out, expected)
        out.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x)[mask], theirs.eval()(x[mask]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(training: bool, value: float) -> None:
    x, mask = batch()

    def run(x: Tensor) -> list[Tensor]:
        norm = MaskedBatchNorm(5).double().train(training)
        return [*gradients(norm, x, mask, read=lambda out: out[mask]), *norm.buffers()]

    assert_padding_may_hold_anything(run, value, (x, mask))
    out = MaskedBatchNorm(5).double().train(training)(x.masked_fill(~mask[..., None], value), mask)
    assert out.isfinite().all()


def test_batch_without_a_real_token_teaches_nothing() -> None:
    norm = MaskedBatchNorm(3)
    out = norm(torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool))
    assert out.isfinite().all()
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm.running_var, torch.ones(3))


def test_gradcheck() -> None:
    x, mask = batch()
    norm = MaskedBatchNorm(5).double()
    x = x[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: norm(x, mask[:2, :3])[mask[:2, :3]], (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, mask = batch()
    out = MaskedBatchNorm(5)(x.to(dtype), mask)
    expected = MaskedBatchNorm(5)(x.float(), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float()[mask], expected[mask], atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("mode", [True, False])
def test_compile_fullgraph(mode: bool) -> None:
    x, mask = batch()
    norm = MaskedBatchNorm(5).double().train(mode)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), norm(x, mask))


def test_error() -> None:
    with pytest.raises(ValueError, match="dim is 0; expected 1 or more"):
        MaskedBatchNorm(0)
    with pytest.raises(ValueError, match=r"eps is -1.0; expected a finite number above 0"):
        MaskedBatchNorm(3, eps=-1.0)
    with pytest.raises(ValueError, match=r"momentum is 5.0; expected a number in \[0, 1\]"):
        MaskedBatchNorm(3, momentum=5.0)
    with pytest.raises(ValueError, match=r"mask is a torch.float32 tensor; expected a bool tensor"):
        MaskedBatchNorm(3)(torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"x has the shape \(2, 4\); expected \(\.\.\., 3\)"):
        MaskedBatchNorm(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mask has the shape \(3,\); expected \(2,\)"):
        MaskedBatchNorm(3)(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))


def loss_and_gradient(norm: MaskedBatchNorm, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = norm(x, mask)[mask].pow(3).sum()
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad


def one_of_two_processes(folder: Path) -> None:
    rank = join(folder)
    x, mask = batch()
    rows = slice(0, 3) if rank == 0 else slice(3, 4)
    norm = MaskedBatchNorm(5).double()
    loss, gradient = loss_and_gradient(norm, x[rows], mask[rows])
    state = {"loss": loss, "gradient": gradient, "mean": norm.running_mean, "var": norm.running_var}
    torch.save(state, folder / f"{rank}.pt")
    leave()


def test_ddp(tmp_path: Path) -> None:
    run_ranks(__file__, tmp_path)
    x, mask = batch()
    norm = MaskedBatchNorm(5).double()
    loss, gradient = loss_and_gradient(norm, x, mask)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(parts[0]["loss"] + parts[1]["loss"], loss)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), gradient)
    for part in parts:
        torch.testing.assert_close(part["mean"], norm.running_mean)
        torch.testing.assert_close(part["var"], norm.running_var)


if __name__ == "__main__":
    one_of_two_processes(Path(sys.argv[1]))
