"""The parser of ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from itmkit.cli.parser import OneLineParser


class MatcherParser(OneLineParser, LightningArgumentParser):
    """A parser of a system, its data and a Trainer, whose loggers need no ``save_dir``.

    jsonargparse makes a parser of this kind for each class that a configuration names.
    """

    required_hint = "; start from a configuration, such as --config mate/shapes"

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        if issubclass(theclass, Logger) and "save_dir" in added:
            self.set_defaults({"save_dir": "."})  # the command puts the run's folder there
        return added
