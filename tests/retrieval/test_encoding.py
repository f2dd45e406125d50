"""Encoding: rows stay together through slicing, joining and moving."""

from __future__ import annotations

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from itmkit.retrieval.encoding import Encoding


def some(n, length, *, mask=True):
    return Encoding(
        vector=torch.randn(n, 4),
        tokens=torch.randn(n, length, 3),
        mask=torch.rand(n, length) < 0.7 if mask else None,
    )


def test_smoke():
    encoding = Encoding(vector=torch.zeros(3, 4), level_tokens=torch.zeros(3, 5, 2), extra=None)
    assert len(encoding) == 3
    assert encoding.vector.shape == (3, 4)
    assert encoding.level_tokens.shape == (3, 5, 2)
    assert encoding.extra is None
    assert encoding.mask is None
    assert list(encoding.items()) == ["vector", "level_tokens"]
    assert encoding.device == torch.device("cpu")
    with pytest.raises(AttributeError, match="no field 'vektor'"):
        _ = encoding.vektor


def test_index():
    encoding = some(5, 6)
    rows = torch.tensor([4, 0, 4])
    whole = torch.arange(5)
    for index in (slice(1, 4), slice(None, None, 2), rows, rows[:0], whole % 2 == 0, [3, 1], []):
        part = encoding[index]
        assert len(part) == len(encoding.vector[index])
        for name, value in encoding.items().items():
            assert torch.equal(part.items()[name], value[index])
    assert torch.equal(encoding[-1].tokens, encoding.tokens[4:])
    assert len(list(encoding)) == 5
    with pytest.raises(IndexError, match="row 5"):
        encoding[5]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), min_size=1),
    seed=st.integers(0, 2**31),
)
def test_naive_loop_reference_cat(sizes, seed):
    torch.manual_seed(seed)
    parts = [some(n, length, mask=mask) for n, length, mask in sizes]
    joined = Encoding.cat(parts)
    assert len(joined) == sum(n for n, _, _ in sizes)
    lengths = {length for _, length, _ in sizes}
    if len(lengths) == 1 and not any(mask for _, _, mask in sizes):
        assert joined.mask is None
    row = 0
    for part, (n, length, mask) in zip(parts, sizes, strict=True):
        for i in range(n):
            assert torch.equal(joined.vector[row], part.vector[i])
            assert torch.equal(joined.tokens[row, :length], part.tokens[i])
            assert (joined.tokens[row, length:] == 0).all()
            if joined.mask is not None:
                own = part.mask[i] if mask else torch.ones(length, dtype=torch.bool)
                assert torch.equal(joined.mask[row, :length], own)
                assert not joined.mask[row, length:].any()
            row += 1


def test_cat_keeps_gradient_and_names():
    parts = [some(2, 3), some(1, 5)]
    tokens = parts[0].tokens.requires_grad_()
    Encoding.cat(parts).tokens.sum().backward()
    assert torch.equal(tokens.grad, torch.ones(2, 3, 3))
    joined = Encoding.cat(
        [Encoding(fine_tokens=torch.ones(1, n, 2), boxes=torch.ones(1, n, 4)) for n in (2, 3)]
    )
    assert joined.fine_mask.tolist() == [[True, True, False], [True, True, True]]
    assert joined.boxes.shape == (2, 3, 4)


def test_to_and_copies():
    encoding = some(2, 3)
    assert encoding.to("meta").tokens.device.type == "meta"
    for twin in (copy.deepcopy(encoding), pickle.loads(pickle.dumps(encoding))):
        assert torch.equal(twin.tokens, encoding.tokens)
        assert repr(twin) == repr(encoding)


def test_error():
    with pytest.raises(ValueError, match="no tensor; expected at least one"):
        Encoding(vector=None)
    with pytest.raises(ValueError, match="tokens has 3 rows, but vector has 2"):
        Encoding(vector=torch.zeros(2, 4), tokens=torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match=r"mask is .*; expected a bool tensor"):
        Encoding(tokens=torch.zeros(2, 3, 4), mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask has shape"):
        Encoding(tokens=torch.zeros(2, 3, 4), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="one row per item"):
        Encoding(vector=torch.tensor(1.0))
    with pytest.raises(ValueError, match="cannot be named 'items'"):
        Encoding(items=torch.zeros(2))


def test_error_cat():
    vector = Encoding(vector=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected at least one"):
        Encoding.cat([])
    with pytest.raises(ValueError, match="tokens is not in"):
        Encoding.cat([some(2, 3), vector])
    with pytest.raises(ValueError, match="vector differs in shape"):
        Encoding.cat([vector, Encoding(vector=torch.zeros(2, 5))])
    with pytest.raises(ValueError, match="tokens differs in shape"):
        Encoding.cat([Encoding(tokens=torch.zeros(2, 3, d)) for d in (4, 5)])
    with pytest.raises(ValueError, match="boxes differs in length and no mask"):
        Encoding.cat([Encoding(boxes=torch.zeros(2, n, 4)) for n in (3, 5)])
