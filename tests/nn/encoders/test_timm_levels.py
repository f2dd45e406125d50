from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from itmkit.nn import RegionProjection
from itmkit.nn.encoders.timm_levels import TimmLevels
from itmkit.nn.pooling.block_discriminability import discriminate_blocks
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability

SWIN = "swin_tiny_patch4_window7_224"
SWIN_ARGS: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "window_size": 2,
    "img_size": 64,
    "num_classes": 3,
}
BACKBONES: dict[str, dict[str, Any]] = {
    "test_byobnet": {"image_size": 64},
    "test_vit": {"image_size": 64},
    SWIN: {"image_size": 64, "model_args": SWIN_ARGS},
}


def levels(name: str, **kwargs: Any) -> TimmLevels:
    return TimmLevels(name, **{"dim": 8, **BACKBONES[name], **kwargs})


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64)


def assert_every_trained_parameter_gets_a_gradient(encoder: nn.Module, x: Tensor) -> None:
    torch.cat([tokens for tokens, _ in encoder(x)], dim=1).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("hidden_dim", [None, 4])
def test_smoke(name: str, hidden_dim: int | None) -> None:
    encoder = levels(name, positions=True, hidden_dim=hidden_dim)
    out = encoder(pixels())
    assert (encoder.dim, encoder.levels, len(out)) == (8, 3, 3)
    for (tokens, mask), (rows, columns) in zip(out, encoder.grids, strict=True):
        assert mask is None
        assert tokens.shape == (2, rows * columns, 8)
    assert_every_trained_parameter_gets_a_gradient(encoder, pixels())


@pytest.mark.parametrize("indices", [(0, 1), (0,), (0, 2), (-2, -1)])
def test_unused_stages_are_not_trained(indices: tuple[int, ...]) -> None:
    for name in BACKBONES:
        assert_every_trained_parameter_gets_a_gradient(levels(name, out_indices=indices), pixels())


def test_shape_of_swin_base() -> None:
    """784×256, 196×512 and 49×1024 at 224 pixels, here with one block a stage."""
    args = {"depths": (1, 1, 1, 1), "embed_dim": 16}
    encoder = TimmLevels("swin_base_patch4_window7_224", 8, model_args=args)
    assert encoder.grids == [(28, 28), (14, 14), (7, 7)]
    assert encoder.channels == [32, 64, 128]


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_naive_reference(name: str) -> None:
    """Place by place, from the maps of the model itself."""
    torch.manual_seed(1)
    spread = FeatureDiscriminability(scale=0.5)
    encoder = levels(name, out_indices=(0, 2), positions=True, level_discriminability=spread).eval()
    torch.manual_seed(1)
    whole = timm.create_model(name, **BACKBONES[name].get("model_args", {})).eval()
    if name == "test_vit":
        whole.set_input_size(img_size=(64, 64))
    x = pixels()
    maps = whole.forward_intermediates(x, intermediates_only=True)
    for level, index in enumerate((0, 2)):
        tokens = encoder(x)[level][0]
        rows, columns = encoder.grids[level]
        assert maps[index].shape[2:] == (rows, columns)
        cells = spread(maps[index].flatten(2).transpose(1, 2))
        norm, projection = encoder.norms[level], encoder.projections[level]
        row, column = encoder.row_embeddings[level], encoder.column_embeddings[level]
        for i in range(rows):
            for j in range(columns):
                cell = cells[:, i * columns + j] + row[i, 0] + column[0, j]
                expected = projection(norm(cell))
                torch.testing.assert_close(
                    tokens[:, i * columns + j], expected, atol=1e-5, rtol=1e-4
                )


@torch.no_grad()
def test_hidden_dim_projects_by_a_region_projection() -> None:
    encoder = levels("test_byobnet", hidden_dim=4).eval()
    maps = encoder.maps(pixels(), None)
    torch.manual_seed(0)
    for level, projection in enumerate(encoder.projections):
        assert isinstance(projection, RegionProjection)
        assert projection.hidden.out_features == 4
        x = pixels()
        maps = encoder.maps(x, None)
        expected = projection(encoder.norms[level](maps[level].flatten(1, 2)))[0]
        assert torch.equal(encoder(x)[level][0], expected)


@pytest.mark.parametrize("name", ["test_vit", SWIN])
@torch.no_grad()
def test_block_discriminability(name: str) -> None:
    spread = FeatureDiscriminability(scale=0.5)
    encoder = levels(name, block_discriminability=spread).eval()
    plain = levels(name).eval()
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(encoder.state_dict())
    x = pixels()
    assert not torch.equal(encoder(x)[0][0], plain(x)[0][0])
    discriminate_blocks(plain.backbone, spread, x[:1])
    for (tokens, _), (expected, _) in zip(encoder(x), plain(x), strict=True):
        torch.testing.assert_close(tokens, expected)


def test_block_discriminability_and_gradients() -> None:
    for name in ("test_vit", SWIN):
        encoder = levels(name, block_discriminability=FeatureDiscriminability(), out_indices=(0, 2))
        assert_every_trained_parameter_gets_a_gradient(encoder, pixels())
        copied = copy.deepcopy(encoder).eval()
        assert torch.equal(copied(x := pixels())[0][0], encoder.eval()(x)[0][0])


def test_block_discriminability_needs_blocks() -> None:
    with pytest.raises(ValueError, match="model is a test_byobnet without"):
        levels("test_byobnet", block_discriminability=FeatureDiscriminability())


def test_neighbours_change_nothing() -> None:
    spread = FeatureDiscriminability(scale=0.5)
    for name in BACKBONES:
        block = None if name == "test_byobnet" else spread
        encoder = levels(
            name,
            positions=True,
            hidden_dim=4,
            level_discriminability=spread,
            block_discriminability=block,
        ).eval()
        x = pixels(3)
        for (tokens, _), (alone, _) in zip(encoder(x), encoder(x[1:2]), strict=True):
            torch.testing.assert_close(tokens[1:2], alone, atol=1e-5, rtol=1e-4)


def test_frozen() -> None:
    encoder = levels("test_byobnet", frozen=True)
    before = {name: t.clone() for name, t in encoder.backbone.state_dict().items()}
    nn.ModuleList([encoder]).train()
    sum(tokens.square().sum() for tokens, _ in encoder(pixels())).backward()
    assert not any(module.training for module in encoder.backbone.modules())
    assert not any(p.requires_grad for p in encoder.backbone.parameters())
    assert all(p.grad is not None for p in encoder.projections.parameters())
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.no_grad()
def test_checkpoint(tmp_path: Path) -> None:
    source = timm.create_model("test_byobnet").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    encoder = levels("test_byobnet", checkpoint=tmp_path / "weights.pth").eval()
    x = pixels()
    maps = source.forward_intermediates(x, intermediates_only=True)
    for own, expected in zip(encoder.maps(x, None), maps[1:4], strict=True):
        torch.testing.assert_close(own, expected.permute(0, 2, 3, 1))


def test_positions_need_their_image_size() -> None:
    encoder = levels("test_byobnet", positions=True)
    with pytest.raises(ValueError, match=r"grid of \(24, 24\) tokens; expected .*image_size=64"):
        encoder(torch.zeros(1, 3, 96, 96))
    assert levels("test_byobnet")(torch.zeros(1, 3, 96, 64))[0][0].shape == (1, 24 * 16, 8)


def test_half_precision() -> None:
    spread = FeatureDiscriminability()
    encoder = levels("test_vit", block_discriminability=spread, level_discriminability=spread)
    x = pixels()
    expected = encoder.eval()(x)
    out = encoder.bfloat16()(x.bfloat16())
    for (tokens, _), (reference, _) in zip(out, expected, strict=True):
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), reference, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("frozen", [True, False])
def test_compile_fullgraph(frozen: bool) -> None:
    spread = FeatureDiscriminability()
    encoder = levels(
        SWIN,
        positions=True,
        frozen=frozen,
        block_discriminability=spread,
        level_discriminability=spread,
    ).eval()
    x = pixels()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for (tokens, _), (expected, _) in zip(compiled(x), encoder(x), strict=True):
        torch.testing.assert_close(tokens, expected)


def test_state_dict_round_trip() -> None:
    source = levels("test_byobnet", positions=True, hidden_dim=4).eval()
    target = levels("test_byobnet", positions=True, hidden_dim=4).eval()
    target.load_state_dict(source.state_dict())
    x = pixels()
    for (tokens, _), (expected, _) in zip(target(x), source(x), strict=True):
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"hidden_dim": 0}, "hidden_dim is 0; expected 1 or more"),
        ({"image_size": 0}, "image_size is 0; expected 1 or more"),
        ({"pretrained": True, "checkpoint": "w.pth"}, "checkpoint is w.pth; expected None"),
        ({"out_indices": (1, 9)}, r"out_indices is 9; expected \[-5, 5\) for test_byobnet"),
        ({"out_indices": (2, 1)}, r"out_indices is \(2, 1\); expected ascending"),
        ({"out_indices": ()}, r"out_indices is \(\); expected ascending stages, at least one"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels("test_byobnet", **kwargs)


def test_input_error() -> None:
    encoder = levels("test_byobnet")
    with pytest.raises(
        ValueError, match=r"features has the shape \(2, 36, 2048\); expected pixels"
    ):
        encoder(torch.zeros(2, 36, 2048))
    with pytest.raises(ValueError, match=r"mask is .*; expected None for pixels"):
        encoder(pixels(), torch.ones(2, 4, dtype=torch.bool))


def test_a_module_instead_of_a_name() -> None:
    model = timm.create_model("test_resnet")
    given, named = (
        TimmLevels(one, 8, out_indices=(1, 2), image_size=64).eval()
        for one in (model, "test_resnet")
    )
    assert given.backbone is model
    given.load_state_dict(named.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 64, 64)
    for one, other in zip(given(pixels), named(pixels), strict=True):
        assert torch.equal(one[0], other[0])
