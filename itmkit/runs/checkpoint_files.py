"""The checkpoint that is given, as a file or as the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.files import user_path
from itmkit.runs.resumed_options import WEIGHTS_ALONE
from itmkit.systems.load import best_checkpoint, checkpoint_content
from itmkit.systems.matcher import check_system


def checkpoint_file(given: str | Path, option: str, *, resumes: bool = False) -> Path:
    """The file of a checkpoint that is given as a file or as the folder of a run.

    Of a folder, a run goes on from ``checkpoints/last.ckpt``; all else takes the best one
    (:func:`~itmkit.systems.load.best_checkpoint`). Links are resolved, for ``latest`` will lead to
    another run.

    Args:
        given: path of the file or folder.
        option: that it was given as.
        resumes: whether a run goes on from it.

    Raises:
        FileNotFoundError: there is no such file or folder, or no checkpoint in the folder.
    """
    path = user_path(given)
    found = path.resolve()
    if found.is_dir():
        folder = found / "checkpoints"
        found = folder / "last.ckpt" if resumes else best_checkpoint(folder)
        if not found.is_file():
            names = "last.ckpt" if resumes else "best.ckpt or last.ckpt"
            raise FileNotFoundError(f"{option} '{path}' has no checkpoints/{names}")
    if not found.is_file():
        raise FileNotFoundError(f"{option} '{path}' is not a file or the folder of a run")
    return found if path.is_absolute() else Path(os.path.relpath(found))


def config_of(given: str | Path) -> Path | None:
    """The ``config.yaml`` of the run that a checkpoint or a folder is of, if there is one."""
    path = user_path(given).resolve()
    runs = [up.parent for up in path.parents if up.name == "checkpoints"]
    configs = [folder / "config.yaml" for folder in ([path] if path.is_dir() else runs)]
    return next((config for config in configs if config.is_file()), None)


def read_checkpoint(
    path: str | Path, option: str, system: type | None = None, *, resumes: bool = False
) -> dict[str, Any]:
    """A checkpoint of a system, its tensors left on disk until they are used.

    Args:
        path: of the file.
        option: that it was given as.
        system: whose it should be, or of a system that this derives from; None: of any, or none.
        resumes: whether training goes on from it, which takes more than weights.

    Raises:
        InputError: if the file is no checkpoint, one of another system, or one of weights alone.
    """
    checkpoint = checkpoint_content(path, f"{option} '{path}'")
    if system is not None:
        check_system(checkpoint, system, name=f"{option} '{path}'")
    missing = {"optimizer_states", "lr_schedulers", "callbacks", "loops"} - checkpoint.keys()
    if resumes and missing:
        raise InputError(
            f"{option} '{path}' holds weights alone, without {min(missing)}; expected all that "
            f"training needs to go on: {WEIGHTS_ALONE}"
        )
    return checkpoint


def check_same_data(checkpoint: dict[str, Any], path: str | Path, data: ImageTextData) -> None:
    """Warn where a run goes on with other training data.

    Raises:
        InputError: if it would be validated on other data: its best score is not of these.
    """
    saved = checkpoint.get(type(data).__qualname__, {}).get("fingerprints", {})
    own = data.fingerprints()
    changed = [part for part in ("train", "val") if saved.get(part, own.get(part)) != own.get(part)]
    if "val" in changed and "val" in own:
        raise InputError(
            f"ckpt_path '{path}' was validated on other images or captions than those of the split "
            f"{data.val_split!r}, so its best score is none of this data: {WEIGHTS_ALONE}"
        )
    if "train" in changed:
        rank_zero_warn(
            f"ckpt_path '{path}' was trained on other images or captions; this run goes on with "
            f"those of the split {data.train_split!r}, and with the checkpoint's vocabulary"
        )
