from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.layers import set_reentrant_ckpt, use_reentrant_ckpt
from torch import Tensor, nn

from itmkit.nn.pooling.block_discriminability import discriminate_blocks
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability

SWIN = "swin_tiny_patch4_window7_224"
MODELS: dict[str, dict[str, Any]] = {
    SWIN: {
        "img_size": 32,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "num_classes": 3,
    },
    "test_vit": {"img_size": 32},
}
DISCRIMINABILITY = FeatureDiscriminability(scale=0.5)


def build(name: str, **kwargs: Any) -> Any:
    """Random biases too, so that no branch is zero."""
    model = timm.create_model(name, **{**MODELS[name], **kwargs})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)


def discriminated(name: str, **kwargs: Any) -> Any:
    model = build(name, **kwargs)
    discriminate_blocks(model, DISCRIMINABILITY, images(1))
    return model


def blocks(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "norm2")]


def naive_swin(model: Any, pixels: Tensor) -> Tensor:
    """The model by its own submodules, with the sum of every block written out."""
    x = model.patch_embed(pixels)
    for stage in model.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            x = x + block._attn(block.norm1(x))
            tokens = x.flatten(1, 2)
            tokens = torch.stack([DISCRIMINABILITY(sample[None])[0] for sample in tokens])
            normed = nn.functional.layer_norm(
                tokens, tokens.shape[-1:], block.norm2.weight, block.norm2.bias, block.norm2.eps
            )
            x = (tokens + block.mlp(normed)).view_as(x)
    return model.norm(x)


def naive_vit(model: Any, pixels: Tensor) -> Tensor:
    x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    for block in model.blocks:
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = torch.stack([DISCRIMINABILITY(sample[None])[0] for sample in x])
        normed = nn.functional.layer_norm(
            x, x.shape[-1:], block.norm2.weight, block.norm2.bias, block.norm2.eps
        )
        x = x + block.ls2(block.mlp(normed))
    return model.norm(x)


NAIVE = {SWIN: naive_swin, "test_vit": naive_vit}


@pytest.mark.parametrize("name", MODELS)
def test_naive_reference(name: str) -> None:
    model = build(name).double()
    x = images().double()
    plain = model.forward_features(x)
    discriminate_blocks(model, DISCRIMINABILITY, x[:1])
    out = model.forward_features(x)
    torch.testing.assert_close(out, NAIVE[name](model, x), atol=1e-10, rtol=0)
    assert (out - plain).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_naive_gradients(name: str) -> None:
    model = discriminated(name).double()
    x = images().double()
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(
        model.forward_features(x).square().sum(), trained, allow_unused=True
    )
    expected = torch.autograd.grad(NAIVE[name](model, x).square().sum(), trained, allow_unused=True)
    for grad, reference in zip(grads, expected, strict=True):
        assert (grad is None) == (reference is None)
        if reference is not None and grad is not None:
            torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_scale_zero_is_the_plain_model(name: str) -> None:
    model, x = build(name), images()
    plain = model.forward_features(x)
    discriminate_blocks(model, FeatureDiscriminability(scale=0), x[:1])
    torch.testing.assert_close(model.forward_features(x), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_building_leaves_the_model_alone(name: str) -> None:
    model = build(name)
    model.patch_embed.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    discriminate_blocks(model, DISCRIMINABILITY, images(1))
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [len(m._forward_hooks) for m in blocks(model)] == [1] * len(blocks(model))
    assert not any(m.mlp._forward_hooks for m in blocks(model))


def test_samples_are_independent() -> None:
    for name in MODELS:
        model, x = discriminated(name), images(3)
        alone = model.forward_features(x[1:2])
        torch.testing.assert_close(model.forward_features(x)[1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_deepcopy_has_hooks_of_its_own(name: str) -> None:
    model, x = discriminated(name), images()
    copied = copy.deepcopy(model)
    expected = model.forward_features(x)
    assert torch.equal(copied.forward_features(x), expected)
    for own, other in zip(blocks(model), blocks(copied), strict=True):
        (first,), (second,) = own._forward_hooks.values(), other._forward_hooks.values()
        (third,) = other.norm2._forward_pre_hooks.values()
        assert first.__self__ is not second.__self__
        assert second.__self__ is third.__self__
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(copied.forward_features(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_run_in_the_middle_of_a_block(name: str) -> None:
    model, x = discriminated(name), images()
    teacher = copy.deepcopy(model)
    expected = model.forward_features(x)
    seen = []

    def run_teacher(*_: object) -> None:
        with torch.no_grad():
            seen.append(teacher.forward_features(x))

    handles = [block.mlp.register_forward_hook(run_teacher) for block in blocks(model)]
    assert torch.equal(model.forward_features(x), expected)
    assert all(torch.equal(out, expected) for out in seen)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_pickle(name: str) -> None:
    model, x = discriminated(name), images()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded.forward_features(x), model.forward_features(x))


@pytest.fixture(params=[False, True], ids=["not_reentrant", "reentrant"])
def reentrant(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = use_reentrant_ckpt()
    set_reentrant_ckpt(request.param)
    yield request.param
    set_reentrant_ckpt(before)


@pytest.mark.parametrize("name", MODELS)
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    model, x = discriminated(name, drop_path_rate=0).train(), images()
    results = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        out = model.forward_features(x)
        model.eval()
        with torch.no_grad():  # another run before the backward
            model.forward_features(images(1))
        model.train()
        out.square().sum().backward()
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), {key: grad.clone() for key, grad in grads.items()}))
    (out, grads), (checkpointed, other) = results
    assert torch.equal(out, checkpointed)
    assert grads.keys() == other.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(other[key], grad)
    for block in blocks(model):  # the second run in the backward is stopped half-way
        assert next(iter(block._forward_hooks.values())).__self__.shift is None
    copy.deepcopy(model)


def test_an_error_in_a_block_leaves_nothing_behind() -> None:
    model, x = discriminated("test_vit"), images()
    expected = model.forward_features(x)

    def fail(*_: object) -> None:
        raise RuntimeError("half-way")

    handle = blocks(model)[0].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="half-way"):
        model.forward_features(x)
    assert next(iter(blocks(model)[0]._forward_hooks.values())).__self__.shift is None
    handle.remove()
    assert torch.equal(model.forward_features(x), expected)


def test_drop_path_does_not_drop_it() -> None:
    """With every branch dropped, what is left is the discriminability itself."""
    model = discriminated("test_vit", drop_path_rate=0.5)
    block = blocks(model)[-1].train()
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 1 - 1e-9
    x = torch.randn(2, 5, block.norm1.weight.numel())
    torch.testing.assert_close(block(x), DISCRIMINABILITY(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str) -> None:
    model, x = discriminated(name), images()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    expected = model.forward_features(x)
    out = model.bfloat16().forward_features(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_compile_fullgraph(name: str) -> None:
    model, x = discriminated(name), images()
    compiled = torch.compile(model.forward_features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.forward_features(x))


def test_error() -> None:
    model = timm.create_model("test_resnet")
    with pytest.raises(ValueError, match=r"model is a test_resnet without .* norm2 and mlp"):
        discriminate_blocks(model, DISCRIMINABILITY, torch.randn(1, 3, 64, 64))


def test_error_of_blocks_that_normalise_after_the_branch() -> None:
    swin = {**MODELS[SWIN], "window_size": 4}
    model = timm.create_model("swinv2_tiny_window8_256", **swin)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    message = r"is a swinv2_tiny_window8_256, whose layers.0.blocks.0 does not"
    with pytest.raises(ValueError, match=message):
        discriminate_blocks(model, DISCRIMINABILITY, images(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_error_of_blocks_with_channels_first() -> None:
    model = timm.models.metaformer.MetaFormer(depths=(1, 1), dims=(8, 8))
    with pytest.raises(ValueError, match=r"is a MetaFormer, whose .* gives norm2 the shape"):
        discriminate_blocks(model, DISCRIMINABILITY, images(1))
