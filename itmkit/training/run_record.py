"""What a run was: ``environment.yaml`` beside it, and its configuration for the loggers."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parameter import is_lazy

import itmkit
from itmkit.files import write_text

_PACKAGES = ("torch", "lightning", "transformers", "timm")


class RunRecord(Callback):
    """Gives the configuration to every logger, and writes ``environment.yaml``.

    That file holds the command line, versions, the processor, the commit of the working folder and
    whether its files differ from it, and the numbers of parameters.

    Args:
        folder: of the run; None to write no file.
        config: the configuration, as plain data.
        arguments: words behind ``itmkit``.
    """

    def __init__(
        self, folder: Path | None, config: Mapping[str, Any], arguments: list[str]
    ) -> None:
        self._folder = folder
        self._options = flatten(config)
        self._command = shlex.join(["itmkit", *arguments])
        self._logged = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers and not self._logged:
            self._logged = True
            for logger in trainer.loggers:
                logger.log_hyperparams(dict(self._options))
        if self._folder is not None and trainer.is_global_zero:
            content = {
                "command": self._command,
                "versions": _versions(),
                "processor": _processor(trainer.strategy.root_device),
                "processes": trainer.world_size,
                "git": git_state(Path()),
                "parameters": count_parameters(pl_module),
            }
            write_text(self._folder / "environment.yaml", yaml.safe_dump(content, sort_keys=False))
            self._folder = None  # written


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested sections and lists by the names of their options.

    Example:
        >>> flatten({"trainer": {"max_epochs": 3, "callbacks": []}, "tags": ["a"]})
        {'trainer.max_epochs': 3, 'trainer.callbacks': [], 'tags.0': 'a'}
    """
    items = enumerate(config) if isinstance(config, list) else config.items()
    flat: dict[str, Any] = {}
    for key, value in items:
        name = f"{prefix}{key}"
        nested = isinstance(value, (list, Mapping)) and value
        flat |= flatten(value, f"{name}.") if nested else {name: value}
    return flat


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of a model: all, and those that are trained; lazy ones have none yet."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters() if not is_lazy(p)]
    return {
        "all": sum(size for size, _ in sizes),
        "trained": sum(size for size, trained in sizes if trained),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a working folder, and whether tracked files differ from it; None without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    # Nothing that the repository configures is run.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"itmkit": itmkit.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{value.strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
