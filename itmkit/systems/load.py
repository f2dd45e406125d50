"""A trained system and its data, from the folder of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from itmkit.data.module import ImageTextData
from itmkit.files import user_path
from itmkit.pretrained import weights_follow
from itmkit.systems.build import build
from itmkit.systems.matcher import Matcher
from itmkit.systems.vocabulary import limit_captions


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

    Pretrained weights are not fetched, as the checkpoint has all; nor are the configuration and the
    tokenizer of a text model, which the checkpoint has too.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or a file of data that is gone.
        InputError: the checkpoint is of another system than the configuration.
    """
    folder = user_path(folder)
    source = folder / "config.yaml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    state: dict[str, Any] = torch.load(folder / checkpoint, map_location="cpu", weights_only=True)
    with weights_follow(state.get("pretrained")):
        built = build(config, {"model": Matcher, "data": ImageTextData}, source=str(source))
    model, data = built["model"], built["data"]
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"])
    data.load_state_dict(state.get(type(data).__qualname__, {}))
    limit_captions(model, data)
    return model.eval(), data
