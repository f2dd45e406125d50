"""Half precision on a CPU, as the command line is asked for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from measured_precision import set_slowdown
from tiny_cli import run

__all__ = ["set_slowdown"]
pytestmark = [
    pytest.mark.filterwarnings("default:.* is slow on this processor"),
    pytest.mark.usefixtures("tiny_folder"),
]


@pytest.mark.parametrize("option", ["bf16-mixed", "bf16-true"])
def test_the_command_line_warns_of_the_precision(
    set_slowdown: Callable[[float], None], option: str
) -> None:
    set_slowdown(8.0)
    with pytest.warns(UserWarning, match=rf"trainer.precision '{option}' is slow .* 8\.0 times"):
        run("fit", "--trainer.precision", option, "--trainer.max_steps", "1")


@pytest.mark.parametrize("option", ["16-mixed", "16"])
@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_16_mixed_is_fp32_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    set_slowdown: Callable[[float], None],
    option: str,
    accelerator: str,
) -> None:
    for one in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(one, "is_available", lambda: False)
    set_slowdown(8.0)
    seen = []
    forward = torch.nn.Linear.forward

    def watched(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        seen.append(forward(layer, x).dtype)
        return forward(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    options = ("--trainer.accelerator", accelerator, "--trainer.precision", option)
    with pytest.warns(UserWarning, match="'16-mixed' needs a GPU: '32-true' is used on this CPU"):
        run("validate", *options)
    assert set(seen) == {torch.float32}
