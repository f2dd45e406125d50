from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itmkit.nn import BiGRU, RegionProjection, TimmGrid
from itmkit.nn.encoders.levels import SharedLevels


def text() -> tuple[Tensor, Tensor]:
    mask = torch.arange(5) < torch.tensor([3, 5, 0])[:, None]
    return torch.randint(1, 10, (3, 5)) * mask, mask


def shared(**kwargs: Any) -> SharedLevels:
    return SharedLevels(BiGRU(10, embed_dim=4, dim=6), **kwargs)


def test_naive_loop_reference() -> None:
    module = shared(levels=2, dim=3)
    ids, mask = text()
    tokens, _ = module.encoder(ids, mask)
    out = module(ids, mask)
    assert (module.dim, module.levels, len(out)) == (3, 2, 2)
    for level, projection in enumerate(module.projections):
        assert torch.equal(out[level][1], mask)
        for i in range(3):
            for n in range(5):
                expected = projection(tokens[i, n]) if mask[i, n] else torch.zeros(3)
                torch.testing.assert_close(out[level][0][i, n], expected)


def test_shape_and_gradients() -> None:
    module = shared()
    out = module(*text())
    assert [tokens.shape for tokens, _ in out] == [(3, 5, 6)] * 3
    torch.cat([tokens for tokens, _ in out]).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_encoders_of_images() -> None:
    regions = SharedLevels(RegionProjection(7, 6, hidden_dim=4), levels=2)
    tokens, mask = regions(torch.randn(2, 5, 7))[1]
    assert mask is None
    assert tokens.shape == (2, 5, 6)
    grid = SharedLevels(TimmGrid("test_resnet", 8, image_size=64), levels=2)
    assert grid(torch.randn(2, 3, 64, 64))[1][0].shape == (2, 4, 8)


def test_padding_and_neighbours_change_nothing() -> None:
    module = shared().eval()
    ids, mask = text()
    for (tokens, _), (alone, _) in zip(
        module(ids, mask), module(ids[:1, :3], mask[:1, :3]), strict=True
    ):
        torch.testing.assert_close(tokens[:1, :3], alone, atol=1e-6, rtol=0)


def test_compile_fullgraph() -> None:
    module = SharedLevels(RegionProjection(7, 6, hidden_dim=4), levels=2).eval()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x, mask = torch.randn(2, 5, 7), torch.arange(5) < torch.tensor([[3], [5]])
    for (tokens, _), (expected, _) in zip(compiled(x, mask), module(x, mask), strict=True):
        torch.testing.assert_close(tokens, expected)


def test_half_precision() -> None:
    module = SharedLevels(RegionProjection(7, 6, hidden_dim=4)).eval()
    x = torch.randn(2, 5, 7)
    expected = module(x)
    out = module.bfloat16()(x.bfloat16())
    for (tokens, _), (reference, _) in zip(out, expected, strict=True):
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), reference, atol=0.1, rtol=0.1)


def test_state_dict_round_trip() -> None:
    source, target = shared().eval(), shared().eval()
    target.load_state_dict(source.state_dict())
    args = text()
    for (tokens, _), (expected, _) in zip(target(*args), source(*args), strict=True):
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"levels": 0}, "levels is 0; expected 1 or more"),
        ({"dim": 0}, "dim is 0; expected 1 or more"),
    ],
)
def test_error(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared(**kwargs)


def test_encoder_without_dim_error() -> None:
    with pytest.raises(
        ValueError, match="encoder is a Linear without a width dim; expected an encoder"
    ):
        SharedLevels(nn.Linear(3, 4))
