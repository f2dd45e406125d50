from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from itmkit.checks import InputError
from itmkit.nn import RegionProjection, TimmGrid

SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (1, 2),
    "window_size": 4,
    "img_size": 32,
    "num_classes": 3,
}
BACKBONES: dict[str, dict[str, Any]] = {
    "test_resnet": {"image_size": 64},
    "test_vit": {"image_size": 64},
    "swin_tiny_patch4_window7_224": {"image_size": 32, "model_args": SWIN},
}


def grid(name: str, **kwargs: Any) -> TimmGrid:
    return TimmGrid(name, **{**BACKBONES[name], **kwargs})


def pixels(encoder: TimmGrid, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, encoder.image_size, encoder.image_size)


@pytest.mark.parametrize("name", BACKBONES)
def test_smoke(name: str) -> None:
    encoder = grid(name, dim=8)
    tokens, mask = encoder(pixels(encoder))
    rows, columns = encoder.grid
    assert mask is None
    assert encoder.dim == 8
    assert tokens.shape == (2, rows * columns, 8)
    tokens.square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name


@pytest.mark.parametrize("name", BACKBONES)
def test_mean_with_the_mirror_image(name: str) -> None:
    encoder = grid(name).eval()
    x = pixels(encoder)
    with torch.no_grad():
        plain, mirrored = (encoder(own)[0].unflatten(1, encoder.grid) for own in (x, x.flip(-1)))
        encoder.mirror_mean = True
        both, turned = (encoder(own)[0].unflatten(1, encoder.grid) for own in (x, x.flip(-1)))
    torch.testing.assert_close(both, (plain + mirrored.flip(2)) / 2)
    torch.testing.assert_close(both, turned.flip(2))
    assert not torch.allclose(both, plain)


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens_are_the_grid_row_by_row(name: str) -> None:
    """Against the final map of the model itself, place by place."""
    encoder = grid(name).eval()
    torch.manual_seed(1)
    x = pixels(encoder)
    with torch.no_grad():
        features = encoder.backbone.forward_features(x)
        tokens = encoder(x)[0]
    rows, columns = encoder.grid
    assert encoder.dim == tokens.shape[-1]
    for i in range(rows):
        for j in range(columns):
            place = {
                "test_resnet": lambda i, j: features[:, :, i, j],
                "test_vit": lambda i, j: features[:, 1 + i * columns + j],
                "swin_tiny_patch4_window7_224": lambda i, j: features[:, i, j],
            }[name](i, j)
            assert torch.equal(tokens[:, i * columns + j], place)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("out_index", [0, -2])
def test_stage(name: str, out_index: int) -> None:
    torch.manual_seed(1)
    encoder = grid(name, out_index=out_index).eval()
    torch.manual_seed(1)
    args = BACKBONES[name].get("model_args", {})
    whole = timm.create_model(name, **args).eval()
    if name == "test_vit":
        whole.set_input_size(img_size=(64, 64))
    x = pixels(encoder)
    with torch.no_grad():
        maps = whole.forward_intermediates(x, intermediates_only=True)
        tokens = encoder(x)[0]
    torch.testing.assert_close(tokens, maps[out_index].flatten(2).transpose(1, 2))
    encoder.train()(x)[0].sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name


def test_image_size_other_than_native() -> None:
    for size in (32, 96):
        for name in ("test_vit", "swin_tiny_patch4_window7_224"):
            encoder = grid(name, image_size=size)
            assert encoder(pixels(encoder))[0].shape[1] == encoder.grid[0] * encoder.grid[1]


def test_positions_are_a_row_plus_a_column() -> None:
    """Added to the grid of the backbone, so before the projection if there is one."""
    encoder = grid("swin_tiny_patch4_window7_224", dim=8, positions=True).eval()
    bare = grid("swin_tiny_patch4_window7_224").eval()
    bare.backbone.load_state_dict(encoder.backbone.state_dict())
    assert encoder.grid == (4, 4)
    x = pixels(encoder)
    row, column = encoder.row_embedding, encoder.column_embedding
    assert row is not None
    assert column is not None
    assert encoder.projection is not None
    cells, tokens = bare(x)[0], encoder(x)[0]
    for i in range(4):
        for j in range(4):
            placed = cells[:, 4 * i + j] + row[i, 0] + column[0, j]
            expected = encoder.projection(placed)
            torch.testing.assert_close(tokens[:, 4 * i + j], expected, atol=1e-5, rtol=0)


def test_positions_need_their_image_size() -> None:
    encoder = grid("test_resnet", dim=8, positions=True)
    with pytest.raises(
        ValueError, match=r"grid of \(3, 3\) tokens; expected \(2, 2\).*image_size=64"
    ):
        encoder(torch.zeros(1, 3, 96, 96))


def test_convolutional_grid_of_another_size() -> None:
    assert grid("test_resnet", dim=8)(torch.zeros(2, 3, 96, 64))[0].shape == (2, 6, 8)


def test_modules_that_come_along_keep_their_mode() -> None:
    projection = RegionProjection(128, 8, hidden_dim=8).eval()
    encoder = TimmGrid("test_resnet", image_size=32, projection=projection)
    assert encoder.training
    assert encoder.backbone.training
    assert not any(module.training for module in projection.modules())


def test_error_of_a_grid_that_only_square_images_tell() -> None:
    """64 tokens of 4 x 16 patches are no grid of 8 x 8."""
    encoder = TimmGrid("xcit_nano_12_p16_224", image_size=64)
    assert encoder.grid == (4, 4)
    with pytest.raises(ValueError, match="features are 64 x 256 pixels; expected a square"):
        encoder(torch.zeros(1, 3, 64, 256))


def test_injected_projection() -> None:
    projection = RegionProjection(96, 8, hidden_dim=4)
    encoder = grid("test_resnet", projection=projection).eval()
    bare = grid("test_resnet").eval()
    bare.backbone.load_state_dict(encoder.backbone.state_dict())
    x = pixels(encoder)
    assert encoder.dim == 8
    assert torch.equal(encoder(x)[0], projection(bare(x)[0])[0])


def test_frozen() -> None:
    encoder = grid("test_resnet", dim=8, frozen=True).train()
    before = {name: t.clone() for name, t in encoder.backbone.state_dict().items()}
    nn.ModuleList([encoder]).train()
    encoder(pixels(encoder))[0].square().sum().backward()
    assert not any(module.training for module in encoder.backbone.modules())
    assert all(p.grad is None and not p.requires_grad for p in encoder.backbone.parameters())
    assert encoder.projection is not None
    assert all(p.grad is not None for p in encoder.projection.parameters())
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_building_leaves_batch_norm_alone() -> None:
    encoder = grid("test_resnet")
    assert encoder.backbone.training
    assert int(encoder.backbone.bn1.num_batches_tracked) == 0


def test_neighbours_change_nothing() -> None:
    for name in BACKBONES:
        encoder = grid(name, dim=8, positions=True).eval()
        x = pixels(encoder, 3)
        torch.testing.assert_close(encoder(x)[0][1:2], encoder(x[1:2])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("by_order", [False, True])
def test_checkpoint(tmp_path: Path, by_order: bool) -> None:
    source = timm.create_model("test_resnet").eval()
    state = source.state_dict()
    if by_order:
        state = {str(i): tensor for i, tensor in enumerate(state.values())}
    torch.save(state, tmp_path / "resnet.pth")
    path = tmp_path / "resnet.pth"
    encoder = grid("test_resnet", checkpoint=path, checkpoint_by_order=by_order).eval()
    x = pixels(encoder)
    expected = source.forward_features(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(x)[0], expected)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth does not fit .* expected those of the model"):
        grid("test_vit", checkpoint=tmp_path / "resnet.pth")


def test_half_precision() -> None:
    encoder = grid("test_vit", dim=8, positions=True).eval()
    x = pixels(encoder)
    expected = encoder(x)[0]
    tokens = encoder.bfloat16()(x.bfloat16())[0]
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("frozen", [True, False])
def test_compile_fullgraph(frozen: bool) -> None:
    encoder = grid("test_vit", dim=8, positions=True, frozen=frozen).eval()
    x = pixels(encoder)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], encoder(x)[0])


def test_state_dict_round_trip() -> None:
    source = grid("test_resnet", dim=8, positions=True).eval()
    target = grid("test_resnet", dim=8, positions=True).eval()
    target.load_state_dict(source.state_dict())
    x = pixels(source)
    assert torch.equal(source(x)[0], target(x)[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"pretrained": True, "checkpoint": "w.pth"}, "checkpoint is w.pth; expected None"),
        ({"checkpoint_by_order": True}, "checkpoint_by_order is true; expected false"),
        ({"image_size": 0}, "image_size is 0; expected 1 or more"),
        ({"out_index": 9}, r"out_index is 9; expected \[-5, 5\) for test_resnet"),
        (
            {"projection": nn.Linear(96, 8)},
            "projection is a Linear without a width dim; expected an encoder",
        ),
        ({"projection": RegionProjection(96, 8), "dim": 4}, "dim is 4; expected None"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid("test_resnet", **kwargs)


def test_unknown_model_error() -> None:
    with pytest.raises(
        ValueError, match=r"model_name is 'resnot'; expected a model that timm knows. Did you mean"
    ):
        TimmGrid("resnot")


def test_input_error() -> None:
    encoder = grid("test_resnet", dim=8)
    with pytest.raises(
        ValueError, match=r"features has the shape \(2, 36, 2048\); expected pixels"
    ):
        encoder(torch.zeros(2, 36, 2048))
    with pytest.raises(ValueError, match=r"features has the shape \(2, 1, 64, 64\)"):
        encoder(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"mask is .*; expected None for pixels"):
        encoder(torch.zeros(2, 3, 64, 64), torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet"])
@pytest.mark.parametrize("out_index", [-1, 1])
def test_a_module_instead_of_a_name(name: str, out_index: int) -> None:
    model = timm.create_model(name)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    named = TimmGrid(name, 8, image_size=160, out_index=out_index).eval()
    given = TimmGrid(model, 8, image_size=160, out_index=out_index).eval()
    assert given.backbone is model
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    given.load_state_dict(named.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 160, 160)
    assert torch.equal(given(pixels)[0], named(pixels)[0])
    given(pixels)[0].sum().backward()
    for key, parameter in given.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key


def test_a_module_of_ones_own() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Conv2d(4, 6, 1))
    layers[0].requires_grad_(False)
    encoder = TimmGrid(layers, 8, image_size=32)
    assert encoder(torch.randn(2, 3, 32, 32))[0].shape == (2, 16, 8)
    assert [p.requires_grad for p in layers.parameters()] == [False, False, True, True]
    with pytest.raises(
        InputError, match=r"out_index is \[1\], but Sequential has no forward_inter"
    ):
        TimmGrid(layers, 8, image_size=32, out_index=1)
    with pytest.raises(
        InputError,
        match=r"pretrained is True and .*; expected False .* is a module",
    ):
        TimmGrid(layers, 8, pretrained=True)
