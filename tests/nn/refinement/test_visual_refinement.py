from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients, lengths_mask
from module_checks import assert_compiles, biased
from torch import Tensor
from torch_gru import torch_gru

from itmkit.nn import ScanAttention, VisualRefinement, l2_normalize
from itmkit.nn.refinement.visual_refinement import RefinedImage

LENGTHS = [5, 1, 3]


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of five, one and three regions, their relations, and the mask."""
    image = l2_normalize(torch.randn(3, 5, 6, dtype=dtype))
    relations = (torch.rand(3, 5, 5, dtype=dtype) + torch.eye(5, dtype=dtype)).clamp_max(1)
    return image, relations, lengths_mask(LENGTHS, 5)


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def attend(similarity: list[list[float]], regions: list[Tensor], smooth: float) -> list[Tensor]:
    shares = [[s if s > 0 else 0.1 * s for s in row] for row in similarity]
    norms = [math.sqrt(sum(row[c] ** 2 for row in shares)) for c in range(len(regions))]
    found = []
    for row in shares:
        powers = [math.exp(smooth * s / norm) for s, norm in zip(row, norms, strict=True)]
        total = torch.zeros_like(regions[0])
        for power, region in zip(powers, regions, strict=True):
            total = total + power / sum(powers) * region
        found.append(unit(total))
    return found


def naive(
    module: VisualRefinement, regions: list[Tensor], relations: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Context, refined tokens and vector of one image, all of whose regions are real."""
    attention, smooth = module.attention, module.attention.smooth
    semantic = [[float(attention.query(v) @ attention.key(u)) for u in regions] for v in regions]
    geometric = [
        [
            float(relations[i, k] * unit(module.relation_query(v)) @ unit(module.relation_key(u)))
            for k, u in enumerate(regions)
        ]
        for i, v in enumerate(regions)
    ]
    context, new = [], []
    for rel, pos in zip(
        attend(semantic, regions, smooth), attend(geometric, regions, smooth), strict=True
    ):
        context.append(unit((rel + pos) / 2))
    for v, con in zip(regions, context, strict=True):
        product = v * con
        new.append(unit(product.where(product > 0, 0.1 * product)))
    out, _ = torch_gru(module.gru)(torch.stack([*regions, *new]))
    tokens = torch.stack([unit(x + v) for x, v in zip(out, [*regions, *regions], strict=True)])
    return torch.stack(context), tokens, module.pool(tokens[None])[0]


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = biased(VisualRefinement(6, attention=ScanAttention(6, smooth=4.0)).double())
    image, relations, mask = batch(torch.float64)
    refined = module(image, relations, mask)
    assert torch.equal(refined.context_mask, mask)
    assert torch.equal(refined.mask, torch.cat([mask, mask], dim=1))
    for i, length in enumerate(LENGTHS):
        context, tokens, vector = naive(module, list(image[i, :length]), relations[i])
        torch.testing.assert_close(refined.context[i, :length], context)
        torch.testing.assert_close(refined.tokens[i][refined.mask[i]], tokens)
        torch.testing.assert_close(refined.vector[i], vector)
    assert not refined.context[~mask].any()
    assert not refined.tokens[~refined.mask].any()


def test_no_mask_is_a_mask_of_ones() -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    plain, masked = module(image, relations), module(image, relations, torch.ones_like(mask))
    assert plain.context_mask is None
    assert plain.mask is None
    for name in ("context", "tokens", "vector"):
        torch.testing.assert_close(getattr(plain, name), getattr(masked, name))


def test_relations_may_be_bool() -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    related = relations > 0.5
    found, expected = module(image, related, mask), module(image, related.float(), mask)
    assert torch.equal(found.vector, expected.vector)


def test_padding_and_neighbours_change_nothing() -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    refined = module(image, relations, mask)
    for i, size in enumerate(LENGTHS):
        alone = module(image[i : i + 1, :size], relations[i : i + 1, :size, :size])
        for found, expected in (
            (refined.context[i, :size], alone.context[0]),
            (refined.tokens[i][refined.mask[i]], alone.tokens[0]),
            (refined.vector[i], alone.vector[0]),
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def outputs(refined: RefinedImage) -> Tensor:
    parts = (refined.context, refined.tokens, refined.vector.unsqueeze(1))
    return torch.cat(parts, dim=1)  # (B, 3N + 1, D)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(value: float) -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    assert_padding_may_hold_anything(
        lambda *inputs: gradients(module, *inputs, mask, read=outputs),
        value,
        (image, mask),
        (relations, mask.unsqueeze(1) & mask.unsqueeze(2)),
    )


def test_image_without_a_region_is_zero_with_zero_gradient() -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    mask[1] = False
    out, *grads = gradients(module, image, relations, mask, read=outputs)
    for x in (out, *grads[:2]):
        assert not x[1].any()
        assert x[0].any()
    assert all(x.isfinite().all() for x in [out, *grads])


def test_images_without_relations_are_finite() -> None:
    module = biased(VisualRefinement(6))
    image, relations, mask = batch()
    found = gradients(module, image, 0 * relations, mask, read=outputs)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("num_regions", [None, 5])
def test_every_parameter_has_a_gradient(num_regions: int | None) -> None:
    module = biased(VisualRefinement(6, num_regions=num_regions))
    image, relations, _ = batch()
    refined = module(image, relations)
    (refined.tokens.sin().sum() + refined.vector.sin().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name


def test_batch_norm_over_positions() -> None:
    module = biased(VisualRefinement(6, num_regions=5))
    image, relations, mask = batch()
    module(image, relations)
    assert module.pool.local_norm.running_mean.shape == (10,)
    assert module.pool.local_norm.running_mean.any()
    with pytest.raises(ValueError, match="tokens has 10 tokens an item and a mask; expected 10"):
        module(image, relations, mask)


def test_gradcheck() -> None:
    module = biased(VisualRefinement(3).double())
    image = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    relations = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(
        lambda image, relations: outputs(module(image, relations, mask)), (image, relations)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = biased(VisualRefinement(6, attention=ScanAttention(6, smooth=2.0)))
    image, relations, mask = batch()
    exact = outputs(module(image, relations, mask))
    with torch.autocast("cpu", torch.bfloat16):
        out = outputs(module(image, relations, mask))
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.1)
    out = outputs(module.to(dtype)(image.to(dtype), relations, mask))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(masked: bool) -> None:
    image, relations, mask = batch()
    assert_compiles(biased(VisualRefinement(6)), image, relations, mask if masked else None)


@pytest.mark.parametrize("num_regions", [None, 5])
def test_state_dict_round_trip(num_regions: int | None) -> None:
    image, relations, _ = batch()
    source = biased(VisualRefinement(6, num_regions=num_regions))
    source(image, relations)  # moves the running statistics
    target = VisualRefinement(6, num_regions=num_regions)
    target.load_state_dict(source.state_dict())
    source.eval()
    target.eval()
    assert torch.equal(outputs(source(image, relations)), outputs(target(image, relations)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"dim": 4, "attention": ScanAttention(5)}, "attention.dim is 5; expected 4"),
        ({"dim": 4, "num_regions": 0}, "num_regions is 0; expected 1 or more"),
        ({"dim": 4, "dropout": -0.1}, r"dropout is -0.1; expected a number in \[0, 1\)"),
    ],
)
def test_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualRefinement(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            (torch.zeros(2, 3, 5), torch.zeros(2, 3, 3)),
            r"image has the shape \(2, 3, 5\); expected",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(1, 3, 3)),
            r"relations has the shape \(1, 3, 3\); expected \(2, 3, 3\)",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 3), torch.ones(2, 3)),
            "mask is .*; expected a bool tensor",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualRefinement(4)(*inputs)
