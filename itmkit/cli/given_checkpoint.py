"""The checkpoint that a command is given, as a file or as the folder of a run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.files import user_path
from itmkit.systems.load import best_checkpoint
from itmkit.systems.matcher import check_system
from itmkit.training.resumed_options import WEIGHTS_ALONE


def checkpoint_file(given: str | Path, option: str, *, command: str | None = None) -> Path:
    """The file of a checkpoint that is given as a file or as the folder of a run.

    Of a folder, ``fit`` goes on from ``checkpoints/last.ckpt``; all else takes the best one,
    ``checkpoints/best.ckpt`` or what ``checkpoint.filename`` named it, and where there is none,
    ``last.ckpt``. Links are resolved, for ``latest`` will lead to another run.

    Args:
        given: path of the file or folder.
        option: that it was given as.
        command: ``fit`` where a run goes on.

    Raises:
        FileNotFoundError: there is no such file or folder, or no checkpoint in the folder.
    """
    path = user_path(given)
    found = path.resolve()
    if found.is_dir():
        resumes = command == "fit"
        folder = found / "checkpoints"
        found = folder / "last.ckpt" if resumes else best_checkpoint(folder)
        if not found.is_file():
            names = "last.ckpt" if resumes else "best.ckpt or last.ckpt"
            raise FileNotFoundError(f"{option} '{path}' has no checkpoints/{names}")
    if not found.is_file():
        raise FileNotFoundError(f"{option} '{path}' is not a file or the folder of a run")
    return found if path.is_absolute() else Path(os.path.relpath(found))


def choose_start(command: str, options: Any, given: set[str]) -> None:
    """Keep one of ``ckpt_path`` and ``init_from``: that of the command line."""
    if command != "fit":
        if "init_from" in given:
            raise InputError(f"init_from is an option of fit; expected --ckpt_path for {command}")
        options.init_from = None
    if options.ckpt_path is None or options.init_from is None:
        return
    chosen = given & {"ckpt_path", "init_from"}
    if len(chosen) != 1:
        raise InputError(
            f"ckpt_path is '{options.ckpt_path}' and init_from '{options.init_from}'; expected "
            "one: ckpt_path goes on with a run, init_from starts a new one from its weights"
        )
    (other,) = {"ckpt_path", "init_from"} - chosen
    options[other] = None


def config_of(given: str | Path) -> Path | None:
    """The ``config.yaml`` of the run that a checkpoint or a folder is of, if there is one."""
    path = user_path(given).resolve()
    folders = (
        [path] if path.is_dir() else [up.parent for up in path.parents if up.name == "checkpoints"]
    )
    return next((f / "config.yaml" for f in folders if (f / "config.yaml").is_file()), None)


def config_from_run_folder(command: str, words: Sequence[str]) -> list[str]:
    """The words behind a command, with the configuration of the run whose checkpoint they name.

    Nothing is added where the words name a configuration, or the run's is not there.

    Raises:
        FileNotFoundError: there is no such checkpoint, and so nothing to take a system from.
    """
    given = [value for name, value in _options(words) if name == "ckpt_path"]
    if not given or any(name in ("config", "c") for name, _ in _options(words)):
        return list(words)
    if given[-1] not in ("", "null"):
        checkpoint_file(given[-1], "ckpt_path", command=command)
    config = config_of(given[-1])
    return list(words) if config is None else [f"--config={config}", *words]


def given_options(words: Sequence[str]) -> set[str]:
    """The names of the options among the words of a command."""
    return {name for name, _ in _options(words)}


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option.startswith("-"):
            found.append((option.lstrip("-"), value if equals else following))
    return found


def read_checkpoint(path: Path, option: str, system: type | None) -> Any:
    """A checkpoint of a system, its tensors left on disk until they are used.

    Args:
        path: of the file.
        option: that it was given as.
        system: whose it should be, or of a system that this derives from; None: of any, or none.

    Raises:
        InputError: if the file is no checkpoint, or one of another system.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{option} '{path}' is not a readable checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{option} '{path}' is not a checkpoint of a system: no 'state_dict'")
    if system is not None:
        check_system(checkpoint, system, name=f"{option} '{path}'")
    return checkpoint


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise unless training can go on from a checkpoint.

    Raises:
        InputError: if it holds weights alone.
    """
    missing = {"optimizer_states", "lr_schedulers", "callbacks", "loops"} - checkpoint.keys()
    if missing:
        raise InputError(
            f"ckpt_path '{path}' holds weights alone, without {sorted(missing)[0]}; expected all "
            f"that training needs to go on: {WEIGHTS_ALONE}"
        )


def check_same_data(checkpoint: dict[str, Any], path: Path, data: ImageTextData) -> None:
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
