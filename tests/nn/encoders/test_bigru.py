from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from itmkit.nn import BiGRU


def batch() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([4, 6, 1, 3])
    mask = torch.arange(6) < lengths[:, None]
    return torch.randint(1, 10, (4, 6)) * mask, mask


def step(x: Tensor, h: Tensor, weights: list[Tensor]) -> Tensor:
    """One step of a GRU, gate by gate."""
    w_x, w_h, b_x, b_h = weights
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (w_x @ x + b_x).chunk(3), (w_h @ h + b_h).chunk(3)
    reset, update = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    return (1 - update) * (n_x + reset * n_h).tanh() + update * h


@torch.no_grad()
def test_naive_loop_reference() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7)
    ids, mask = batch()
    tokens, out_mask = encoder(ids, mask)
    assert torch.equal(out_mask, mask)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    for i in range(len(ids)):
        words = [encoder.embedding.weight[k] for k in ids[i][mask[i]]]
        both = []
        for suffix, sequence in (("", words), ("_reverse", words[::-1])):
            h, states = torch.zeros(7), []
            for word in sequence:
                h = step(word, h, [getattr(encoder.gru, name + suffix) for name in names])
                states.append(h)
            both.append(states if suffix == "" else states[::-1])
        for j in range(6):
            expected = (both[0][j] + both[1][j]) / 2 if j < len(words) else torch.zeros(7)
            torch.testing.assert_close(tokens[i, j], expected, atol=1e-6, rtol=0)


def test_padding_and_neighbours_change_nothing() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7, num_layers=2).eval()
    ids, mask = batch()
    tokens = encoder(ids, mask)[0]
    for i in range(len(ids)):
        n = int(mask[i].sum())
        alone = encoder(ids[i : i + 1, :n], mask[i : i + 1, :n])[0]
        torch.testing.assert_close(tokens[i : i + 1, :n], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder(ids.masked_fill(~mask, 9), mask)[0], tokens)


def test_caption_without_a_word_is_zero() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7)
    ids = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.tensor([[False, False, False], [True, False, False]])
    tokens = encoder(ids, mask)[0]
    assert torch.equal(tokens[0], torch.zeros(3, 7))
    tokens.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_order_matters() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7)
    mask = torch.ones(1, 3, dtype=torch.bool)
    forth = encoder(torch.tensor([[1, 2, 3]]), mask)[0].sum(1)
    back = encoder(torch.tensor([[3, 2, 1]]), mask)[0].sum(1)
    assert (forth - back).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7, dropout=0.4)
    ids, mask = batch()
    assert not torch.equal(encoder(ids, mask)[0], encoder(ids, mask)[0])
    assert torch.equal(encoder.eval()(ids, mask)[0], encoder(ids, mask)[0])


def test_word_vectors(tmp_path: Path) -> None:
    vectors = np.random.randn(10, 5)
    np.save(tmp_path / "vectors.npy", vectors)
    encoder = BiGRU(10, embed_dim=5, dim=7, word_vectors=tmp_path / "vectors.npy")
    torch.testing.assert_close(encoder.embedding.weight.data, torch.from_numpy(vectors).float())
    with pytest.raises(ValueError, match=r"shape \(10, 5\); expected \(11, 5\), a row a word id"):
        BiGRU(11, embed_dim=5, dim=7, word_vectors=tmp_path / "vectors.npy")
    with pytest.raises(FileNotFoundError):
        BiGRU(10, embed_dim=5, dim=7, word_vectors=tmp_path / "none.npy")


def test_gradcheck() -> None:
    encoder = BiGRU(5, embed_dim=2, dim=2).double()
    ids, mask = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[True, True], [True, False]])

    def forward(weight: Tensor) -> Tensor:
        out: tuple[Tensor, Tensor] = torch.func.functional_call(
            encoder, {"embedding.weight": weight}, (ids, mask)
        )
        return out[0]

    assert torch.autograd.gradcheck(forward, (encoder.embedding.weight.detach().requires_grad_(),))


def test_half_precision() -> None:
    encoder = BiGRU(10, embed_dim=5, dim=7)
    ids, mask = batch()
    expected = encoder(ids, mask)[0]
    tokens = encoder.bfloat16()(ids, mask)[0]
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), expected, atol=3e-2, rtol=3e-2)


def test_state_dict_round_trip() -> None:
    source, target = BiGRU(10, embed_dim=5, dim=7), BiGRU(10, embed_dim=5, dim=7)
    target.load_state_dict(source.state_dict())
    ids, mask = batch()
    assert torch.equal(source(ids, mask)[0], target(ids, mask)[0])


def test_error() -> None:
    with pytest.raises(ValueError, match="num_layers is 0; expected 1 or more"):
        BiGRU(10, num_layers=0)
    with pytest.raises(ValueError, match=r"dropout is 1; expected a number in \[0, 1\)"):
        BiGRU(10, dropout=1)
    encoder = BiGRU(10, embed_dim=5, dim=7)
    with pytest.raises(ValueError, match=r"id 12; expected ids in \[0, 10\)"):
        encoder(torch.tensor([[3, 12]]), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has padding before a word; expected words first"):
        encoder(torch.tensor([[3, 2]]), torch.tensor([[False, True]]))
