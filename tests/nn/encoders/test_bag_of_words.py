from __future__ import annotations

import pytest
import torch

from itmkit.nn import BagOfWords

IDS = torch.tensor([[3, 1, 4], [1, 5, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_naive_loop_reference() -> None:
    encoder = BagOfWords(10, 8)
    tokens, mask = encoder(IDS, MASK)
    assert torch.equal(mask, MASK)
    for i in range(2):
        for j in range(3):
            expected = encoder.embedding.weight[IDS[i, j]] if MASK[i, j] else torch.zeros(8)
            assert torch.equal(tokens[i, j], expected)


def test_order_is_lost() -> None:
    encoder = BagOfWords(10, 8)
    order = torch.tensor([2, 0, 1])
    swapped = encoder(IDS[:1, order], MASK[:1])[0]
    assert torch.equal(encoder(IDS[:1], MASK[:1])[0][:, order], swapped)


def test_dropout_acts_in_training_only() -> None:
    encoder = BagOfWords(10, 8, dropout=0.5)
    assert not torch.equal(encoder(IDS, MASK)[0], encoder(IDS, MASK)[0])
    assert torch.equal(encoder.eval()(IDS, MASK)[0], encoder(IDS, MASK)[0])


def test_half_precision() -> None:
    assert BagOfWords(10, 8).half()(IDS, MASK)[0].dtype == torch.float16


def test_compile_fullgraph() -> None:
    encoder = BagOfWords(10, 8)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IDS, MASK)[0], encoder(IDS, MASK)[0])


def test_state_dict_round_trip() -> None:
    source, target = BagOfWords(10, 8), BagOfWords(10, 8)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(IDS, MASK)[0], target(IDS, MASK)[0])


def test_error() -> None:
    with pytest.raises(ValueError, match="vocab_size is 0; expected 1 or more"):
        BagOfWords(0, 8)
    with pytest.raises(ValueError, match=r"dropout is -1; expected a number in \[0, 1\)"):
        BagOfWords(10, 8, dropout=-1)
    with pytest.raises(ValueError, match=r"id 5; expected ids in \[0, 5\)"):
        BagOfWords(5, 8)(IDS, MASK)
