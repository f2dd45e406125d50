"""A trained system and its data, from the folder of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from itmkit.checks import constructor_errors
from itmkit.data.module import ImageTextData
from itmkit.files import user_path
from itmkit.systems.matcher import Matcher


def load_run(
    folder: str | Path, *, checkpoint: str | Path = "checkpoints/best.ckpt"
) -> tuple[Matcher, ImageTextData]:
    """Build what a run's ``config.yaml`` describes and load the weights that it learnt.

    Args:
        folder: run folder of ``itmkit fit``.
        checkpoint: file of the weights, relative to ``folder``.

    Returns:
        The system, in evaluation mode on the CPU, and the data it was trained on, with the words
        of its vocabulary.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or a file that the configuration names.
        ValueError: the checkpoint is of another system than the configuration.
    """
    folder = user_path(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Matcher, "model", subclass_mode=True)
    parser.add_lightning_class_args(ImageTextData, "data", subclass_mode=True)
    parsed = parser.parse_object({name: config[name] for name in ("model", "data")})
    with constructor_errors():
        built = parser.instantiate_classes(parsed)
    model, data = built.model, built.data
    state: dict[str, Any] = torch.load(folder / checkpoint, map_location="cpu", weights_only=True)
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"])
    data.load_state_dict(state.get(type(data).__qualname__, {}))
    return model.eval(), data
