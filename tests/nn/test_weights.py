from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from itmkit.checks import InputError
from itmkit.nn.weights import freeze_unused, load_weights


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_smoke(tmp_path: Path, key: str | None) -> None:
    source, target = model(), model()
    state = source.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(source[0].weight, target[0].weight)


def test_safetensors(tmp_path: Path) -> None:
    source, target = model(), model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, str(tmp_path / "w.safetensors"))
    assert torch.equal(source[0].weight, target[0].weight)


def test_by_order(tmp_path: Path) -> None:
    source, target = model(), model()
    state = {f"t{i}": tensor for i, tensor in enumerate(source.state_dict().values())}
    torch.save(state, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", by_order=True)
    for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_error_leaves_the_module_alone(tmp_path: Path) -> None:
    target = model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = model().state_dict()
    path = tmp_path / "w.pth"

    torch.save({**state, "1.bias": torch.zeros(5)}, path)
    for by_order in (False, True):
        misfit = r"w\.pth does not fit Sequential: 1.bias \(\(5,\), expected \(4,\)\); "
        with pytest.raises(InputError, match=misfit):
            load_weights(target, path, by_order=by_order)
    torch.save({("x" if name == "0.bias" else name): t for name, t in state.items()}, path)
    with pytest.raises(InputError, match=r"0.bias \(not in the file\), x \(not in the model\)"):
        load_weights(target, path)
    torch.save({"only": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds 1 tensors; expected 7"):
        load_weights(target, path, by_order=True)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"holds .*; expected a state dict"):
        load_weights(target, path)
    torch.save({"w": Path()}, path)
    with pytest.raises(InputError, match=r"holds an object of pathlib\.\S+; expected tensors and"):
        load_weights(target, path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"w.pth is not a readable file of torch.save$"):
        load_weights(target, path)
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"w.safetensors cannot be read"):
        load_weights(target, tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none.pth does not exist"):
        load_weights(target, tmp_path / "none.pth")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_freeze_unused() -> None:
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    freeze_unused(module, module[0](torch.randn(2, 3)))
    assert [p.requires_grad for p in module.parameters()] == [True, True, False, False]
    assert all(p.grad is None for p in module.parameters())
