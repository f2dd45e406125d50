"""What a run was: ``environment.yaml`` and ``config.yaml`` in its folder, and for the loggers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import join
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parameter import is_lazy

import itmkit
from itmkit.configs.flat import flat_options
from itmkit.data import ImageTextData
from itmkit.files import user_path, write_text
from itmkit.machine import processor_name

_PACKAGES = ("torch", "lightning", "transformers", "timm")


class RunRecord(Callback):
    """Gives the configuration to every logger, and writes it and ``environment.yaml``.

    The latter holds the command line, versions, the processor, the commit of the working folder and
    whether its files differ from it, the numbers of parameters, and those of images and captions of
    every split that is open.

    Args:
        folder: of the run; None to write no file.
        config: the configuration, as plain data; the loggers get it by the names of its options,
            and the file ``config.yaml`` whole.
        command: the words of the command line; None: of this process.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(
        ...         accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        ...         enable_progress_bar=False, enable_model_summary=False,
        ...         callbacks=[RunRecord(folder, {"lr": 0.1}, ["train.py", "--lr=0.1"])],
        ...     )
        ...     trainer.fit(BoringModel())
        ...     record = yaml.safe_load(Path(folder, "environment.yaml").read_text())
        >>> record["command"], record["processes"], record["parameters"]
        ('train.py --lr=0.1', 1, {'all': 66, 'trained': 66})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        command: list[str] | None = None,
    ) -> None:
        self._folder = None if folder is None else user_path(folder)
        self._config = dict(config or {})
        self._command = join(sys.argv if command is None else command)
        self._logged = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers and not self._logged:
            self._logged = True
            for logger in trainer.loggers:
                logger.log_hyperparams(flat_options(self._config))
        if self._folder is not None and trainer.is_global_zero:
            device = trainer.strategy.root_device
            content = {
                "command": self._command,
                "versions": _versions(),
                "processor": torch.cuda.get_device_name(device)
                if device.type == "cuda"
                else f"{processor_name()}, {os.cpu_count()} cores",
                "processes": trainer.world_size,
                "git": git_state(Path()),
                "parameters": count_parameters(pl_module),
            }
            if isinstance(data := trainer.datamodule, ImageTextData):  # type: ignore[attr-defined]
                content["data"] = data.sizes()
            write_text(self._folder / "environment.yaml", yaml.safe_dump(content, sort_keys=False))
            if self._config:
                text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
                write_text(self._folder / "config.yaml", text)
            self._folder = None  # written


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of a model: all, and those that are trained; lazy ones have none yet."""
    made = [one for one in model.parameters() if not is_lazy(one)]
    trained = sum(one.numel() for one in made if one.requires_grad)
    return {"all": sum(one.numel() for one in made), "trained": trained}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a working folder, and whether tracked files differ from it; None without git."""
    # Nothing that the repository configures is run.
    git = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder)]
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10)
            for words in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changed.stdout)}


def _versions() -> dict[str, str]:
    versions = {"itmkit": itmkit.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
