"""A trained system and its data, from the folder of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.data.module import ImageTextData
from itmkit.files import path_inside, read_yaml, user_path
from itmkit.nn.weights import read_torch_file, stored_by
from itmkit.pretrained import weights_follow
from itmkit.systems.build import build
from itmkit.systems.matcher import Matcher
from itmkit.systems.vocabulary import limit_captions

RUNS = Path("runs")


def find_run(name: str | Path) -> Path:
    """Folder of a run: that folder, ``…/latest``, or that of a NAME for ``runs/NAME/latest``.

    Raises:
        FileNotFoundError: there is no such run.
    """
    path = user_path(name)
    for folder in (path, path / "latest", RUNS / path / "latest", RUNS / path):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    raise FileNotFoundError(
        f"run is '{name}': neither the folder of a run nor the NAME of one ({RUNS / path}/latest)"
    )


def load_run(
    folder: str | Path, *, checkpoint: str | Path | None = None
) -> tuple[Matcher, ImageTextData]:
    """Build what a run's ``config.yaml`` describes and load the weights that it learnt.

    Pretrained weights are not fetched, as the checkpoint has all; nor are the configuration and the
    tokenizer of a text model, which the checkpoint has too.

    Args:
        folder: run folder of ``itmkit fit``.
        checkpoint: file of the weights, relative to ``folder``; None for :func:`best_checkpoint`.

    Returns:
        The system, in evaluation mode on the CPU, and the data it was trained on, with the words
        of its vocabulary.

    Raises:
        FileNotFoundError: no such folder or checkpoint, or a file of data that is gone.
        InputError: the checkpoint is not readable, or of another system than the configuration, or
            its weights do not fit.
    """
    folder = user_path(folder)
    source = folder / "config.yaml"
    config = read_yaml(source)
    file = best_checkpoint(folder / "checkpoints") if checkpoint is None else folder / checkpoint
    state = checkpoint_content(file, f"checkpoint '{file}'")
    with stored_by(state.get("itmkit_version")), weights_follow(state.get("pretrained")):
        built = build(config, {"model": Matcher, "data": ImageTextData}, source=str(source))
    model, data = built["model"], built["data"]
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"])
    data.load_state_dict(state.get(type(data).__qualname__, {}))
    limit_captions(model, data)
    return model.eval(), data


def checkpoint_content(path: str | Path, name: str) -> dict[str, Any]:
    """The contents of a checkpoint, its tensors left on disk until they are used.

    Args:
        path: of the file.
        name: what an error calls it; its ``source``.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: if the file is not a checkpoint with weights.
    """
    content = read_torch_file(path, name, mmap=True)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{name} is not a checkpoint of a system: no 'state_dict'")
    return {**content, "source": name}


def best_checkpoint(folder: Path) -> Path:
    """The best checkpoint in the folder ``checkpoints`` of a run, whatever its name.

    Args:
        folder: that holds ``best.ckpt``, or ``last.ckpt``, which knows what the best was named.

    Returns:
        ``best.ckpt`` where it is there or nothing is; ``last.ckpt`` where there is no best one.
    """
    usual, last = folder / "best.ckpt", folder / "last.ckpt"
    if usual.is_file() or not last.is_file():
        return usual
    content = checkpoint_content(last, f"checkpoint '{last}'")
    for name, state in content.get("callbacks", {}).items():
        if name.startswith("BestCheckpoint") and state["best_model_path"]:
            best = folder / path_inside(Path(state["dirpath"] or ""), state["best_model_path"])
            if best.is_file():
                return best
    return last
