from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from itmkit.nn import MatchingHead


@torch.no_grad()
def test_naive_loop_reference() -> None:
    head = MatchingHead(8)
    image, text = torch.randn(3, 8), torch.randn(3, 8)
    logits = head(image, text)
    assert logits.shape == (3,)
    for p in range(3):
        both = torch.cat([image[p], text[p], image[p] * text[p]])
        hidden = F.gelu(head.hidden.weight @ both + head.hidden.bias)
        expected = head.logit.weight[0] @ hidden + head.logit.bias[0]
        torch.testing.assert_close(logits[p], expected)


def test_learns_to_tell_pairs_apart() -> None:
    head = MatchingHead(8)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    image = torch.randn(64, 8)
    labels = (torch.arange(64) % 2).float()
    text = torch.where(labels[:, None] > 0, image, -image)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(head(image, text), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_error() -> None:
    with pytest.raises(ValueError, match="dim is 0; expected 1 or more"):
        MatchingHead(0)
    with pytest.raises(ValueError, match=r"text_out has the shape .*; expected \(2, 8\)"):
        MatchingHead(8)(torch.zeros(2, 8), torch.zeros(3, 8))


def test_gradcheck() -> None:
    head = MatchingHead(4).double()
    pair = [torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(head, pair)


def test_half_precision() -> None:
    head, pair = MatchingHead(8), (torch.randn(3, 8), torch.randn(3, 8))
    expected = head(*pair)
    logits = head.bfloat16()(*(x.bfloat16() for x in pair))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=3e-2, rtol=3e-2)


def test_compile_fullgraph() -> None:
    head, pair = MatchingHead(8), (torch.randn(3, 8), torch.randn(3, 8))
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pair), head(*pair))


def test_state_dict_round_trip() -> None:
    source, target = MatchingHead(8), MatchingHead(8)
    target.load_state_dict(source.state_dict())
    pair = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.equal(source(*pair), target(*pair))
