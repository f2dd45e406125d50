from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from itmkit.nn.contract import Tokens
from itmkit.nn.functional import check_ids, check_tokens, fill_padding, map_tensors, xavier_linear


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, 4), None, r"x has the shape \(2, 4\); expected \(batch, tokens, 4\)"),
        ((2, 3, 5), None, r"x has the shape \(2, 3, 5\)"),
        ((2, 3, 4), torch.ones(2, 3), "mask is a torch.float32 tensor; expected a bool tensor"),
        (
            (2, 3, 4),
            torch.ones(2, 4, dtype=torch.bool),
            r"mask has the shape .*; expected \(2, 3\)",
        ),
    ],
)
def test_check_tokens_error(
    shape: tuple[int, ...], mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_tokens("x", torch.zeros(shape), 4, mask, "mask")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, 17]]), r"id 17; expected ids in \[0, 10\)"),
        (torch.tensor([[1, -2]]), "id -2; expected"),
        (torch.tensor([1, 2]), r"ids has the shape \(2,\); expected \(batch, length\)"),
    ],
)
def test_check_ids_error(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ids(ids, torch.ones_like(ids, dtype=torch.bool), 10)


def test_check_ids_mask_error() -> None:
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mask is .*; expected a bool tensor"):
        check_ids(ids, torch.ones(1, 2), 10)
    with pytest.raises(ValueError, match=r"mask has the shape .*; expected \(1, 2\)"):
        check_ids(ids, torch.ones(1, 3, dtype=torch.bool), 10)


def test_fill_padding() -> None:
    tokens = torch.randn(2, 3, 4, 5, requires_grad=True)
    mask = torch.rand(3, 4) > 0.5
    filled = torch.full_like(tokens, float("nan")).where(~mask[..., None], tokens)
    out = fill_padding(filled, mask)
    torch.testing.assert_close(out, tokens * mask[..., None])
    out.sum().backward()
    torch.testing.assert_close(tokens.grad, mask[..., None].expand_as(tokens).float())
    assert fill_padding(tokens, None) is tokens


def test_map_tensors_keeps_what_is_around_them() -> None:
    packed = pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    pair = Tokens(torch.ones(2), None)
    value = {"a": [pair, (1, "b")], "c": packed, "d": torch.ones(2).max(0)}
    found = map_tensors(lambda tensor: 2 * tensor, value)
    assert found["a"] == [Tokens(found["a"][0].tokens, None), (1, "b")]
    assert found["a"][0].tokens.tolist() == [2, 2]
    assert isinstance(found["c"], PackedSequence)
    assert found["c"].data.tolist() == 3 * [[2, 2, 2]]
    assert found["d"].values == 2


def test_xavier_linear() -> None:
    layer = xavier_linear(300, 100)
    assert layer.weight.shape == (100, 300)
    assert not layer.bias.any()
    bound = (6 / 400) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
