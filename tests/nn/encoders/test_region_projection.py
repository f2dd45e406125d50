from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from itmkit.nn import ExternalSpatialAttention, RegionProjection, l2_normalize


def encoder() -> RegionProjection:
    module = RegionProjection(6, 4, hidden_dim=5)
    torch.nn.init.normal_(module.norm.running_mean)
    torch.nn.init.uniform_(module.norm.running_var, 0.5, 2)
    return module


def test_golden_esa_image_encoder(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    values = {name: torch.from_numpy(array) for name, array in golden("esa_image_encoder").items()}
    x = values["x"]
    hidden_dim, in_dim = values["enc.mlp.layers.0.weight"].shape
    dim = len(values["enc.fc.weight"])
    projection = RegionProjection(in_dim, dim, hidden_dim=hidden_dim).eval()
    pool = ExternalSpatialAttention(dim).eval()
    layers = {
        "enc.fc": projection.linear,
        "enc.mlp.layers.0": projection.hidden,
        "enc.mlp.layers.1": projection.out,
        "enc.mlp.bns.0": projection.norm,
        "enc.linear1": pool.linear,
    }
    for prefix, layer in layers.items():
        names = layer.state_dict()
        layer.load_state_dict({name: values[f"{prefix}.{name}"] for name in names})
    out = l2_normalize(pool(*projection(x)))
    torch.testing.assert_close(out, values["out"], atol=1e-5, rtol=0)


def test_naive_loop_reference() -> None:
    module = encoder().eval()
    x = torch.randn(2, 3, 6)
    tokens, mask = module(x)
    assert mask is None
    norm = module.norm
    for i in range(2):
        for n in range(3):
            hidden = module.hidden.weight @ x[i, n] + module.hidden.bias
            hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            hidden = (hidden * norm.weight + norm.bias).clamp_min(0)
            expected = module.linear.weight @ x[i, n] + module.linear.bias
            expected = expected + module.out.weight @ hidden + module.out.bias
            torch.testing.assert_close(tokens[i, n], expected)


def test_initial_weights() -> None:
    module = RegionProjection(300, 200, hidden_dim=100)
    for layer in (module.linear, module.hidden, module.out):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert bound * 0.95 < float(layer.weight.detach().abs().max()) <= bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.parametrize("mode", [True, False])
def test_padding_changes_nothing(mode: bool) -> None:
    x = torch.randn(3, 5, 6)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    outs = []
    for pad in (0.0, 1e4, float("inf")):
        torch.manual_seed(1)
        module = encoder().train(mode)
        tokens, out_mask = module(x.masked_fill(~mask[..., None], pad), mask)
        assert torch.equal(tokens[~mask], torch.zeros(5, 4))
        assert torch.equal(out_mask, mask)
        outs.append((tokens, module.norm.running_mean, module.norm.running_var))
    for other in outs[1:]:
        for a, b in zip(outs[0], other, strict=True):
            assert torch.equal(a, b)


def test_neighbours_change_nothing() -> None:
    module = encoder().eval()
    x = torch.randn(3, 5, 6)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    alone = module(x[1:2, :2])[0]
    torch.testing.assert_close(module(x, mask)[0][1:2, :2], alone, atol=1e-6, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    module = RegionProjection(6, 4, hidden_dim=5, dropout=0.5)
    x = torch.randn(2, 3, 6)
    assert not torch.equal(module(x)[0], module(x)[0])
    assert torch.equal(module.eval()(x)[0], module(x)[0])


def test_gradcheck() -> None:
    module = encoder().double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda x: module(x, mask)[0], (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = encoder().eval()
    x = torch.randn(2, 3, 6)
    expected = module(x)[0]
    tokens = module.to(dtype)(x.to(dtype))[0]
    assert tokens.dtype == dtype
    torch.testing.assert_close(tokens.float(), expected, atol=5e-2, rtol=5e-2)
    assert module.train()(x.to(dtype))[0].dtype == dtype


def test_autocast() -> None:
    module = encoder()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = module(torch.randn(2, 3, 6))[0]
    assert tokens.isfinite().all()


def test_compile_fullgraph() -> None:
    module = encoder()
    x, mask = torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask)[0], module(x, mask)[0])


def test_state_dict_round_trip() -> None:
    source = encoder().eval()
    target = RegionProjection(6, 4, hidden_dim=5).eval()
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 6)
    assert torch.equal(source(x)[0], target(x)[0])


def test_error() -> None:
    with pytest.raises(ValueError, match="hidden_dim is 0; expected 1 or more"):
        RegionProjection(6, 4, hidden_dim=0)
    with pytest.raises(ValueError, match=r"dropout is 1; expected a number in \[0, 1\)"):
        RegionProjection(6, 4, dropout=1)
    with pytest.raises(ValueError, match=r"features has the shape \(2, 3, 7\); expected .*6\)"):
        RegionProjection(6, 4)(torch.zeros(2, 3, 7))
