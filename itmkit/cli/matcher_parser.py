"""The parser of ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from itmkit.cli.options import RunOptions
from itmkit.cli.parser import OneLineParser
from itmkit.data import ImageTextData
from itmkit.systems import Matcher
from itmkit.training import BestCheckpoint, LastCheckpoint


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


def command_parser(command: str) -> MatcherParser:
    """The parser of a command, with the options of :data:`itmkit.cli.options.OPTIONS`."""
    parser = MatcherParser(prog=f"itmkit {command}", allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_class_arguments(RunOptions, as_group=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Matcher, "model", subclass_mode=True)
    parser.add_lightning_class_args(ImageTextData, "data", subclass_mode=True)
    parser.add_class_arguments(BestCheckpoint, "checkpoint", skip={"save_last"})
    parser.add_class_arguments(LastCheckpoint, "last", skip={"dirpath"})
    parser.set_defaults(
        {
            "trainer.default_root_dir": "runs",
            "trainer.num_sanity_val_steps": 0,
            "checkpoint.filename": "best",
            "checkpoint.monitor": "val/rsum",
            "checkpoint.mode": "max",
        }
    )
    return parser
