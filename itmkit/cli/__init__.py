"""The command line: ``itmkit COMMAND …``; :data:`COMMANDS` is the table of its commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature

import itmkit
from itmkit.checks import did_you_mean
from itmkit.cli.errors import fail, report_user_errors
from itmkit.memory import keep_freed_memory

#: what each command does, in one line; it is the function of its name in the module of its name in
#: here, or that of :data:`MODULES`, imported when it is called: with the words after the command,
#: where it takes ``words``; else its signature and docstring are the options, and ``ARGUMENTS`` of
#: its module (:func:`itmkit.cli.parser.call`)
COMMANDS = {
    "fit": "train a system; its folder gets the configuration, logs, checkpoints and recall",
    "validate": "measure recall on the validation split",
    "test": "measure recall on the test split",
    "predict": "encode the images and captions of the test split with a checkpoint, to disk",
    "compare": "set evaluations side by side, and say how sure their difference is",
    "audit": "find out whether the recall of a run is earned: pairs broken, noise, other orders",
    "extract": "compute a backbone's features of a folder of images, once, to disk",
    "convert": "write features of regions, or COCO's captions, of other layouts in that of itmkit",
    "index": "make an index of a folder of pictures with a trained model, or bring it up to date",
    "search": "find pictures of an index by words, a picture, or both",
    "app": "open a search page of an index for the browser",
    "doctor": "show versions, devices, extras and caches, and what a configuration would download",
    "export": "write a trained model as ONNX files, checked against the model",
    "report": "write a page of a run: recall, curves, right and wrong results, and why",
    "configs": "list the shipped configurations, or print one: configs show NAME",
}
MODULES = dict.fromkeys(("validate", "test", "predict"), "fit")
HELP = """\
usage: itmkit <command> [--config NAME_OR_PATH] [options]

Train, measure and use image-text matching systems.

commands:
{commands}

options:
  -h, --help     show this, or with a command all of its options
  --version      show the version

shipped configurations: {configs}

examples:
  itmkit fit --config mate/shapes --trainer.max_epochs 5
  itmkit test --ckpt_path runs/mate-shapes/latest
  itmkit index photos/ --model mate-shapes && itmkit search mate-shapes "two dogs on a beach"
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors that the user can fix end in one line on stderr and exit status 2; ``ITMKIT_DEBUG=1`` in
    the environment shows their tracebacks.

    Args:
        argv: the words after ``itmkit``; those of this process if None.

    Example:
        >>> main(["--version"])
        itmkit ...
    """
    name, *words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if (here := os.getcwd()) not in sys.path:  # a configuration may name classes of the user's
        sys.path.append(here)
    if name in ("-h", "--help"):
        from itmkit.configs import config_names

        commands = "\n".join(f"  {name:11}{does}" for name, does in COMMANDS.items())
        print(HELP.format(commands=commands, configs=", ".join(config_names())), end="")
    elif name == "--version":
        print(f"itmkit {itmkit.__version__}")
    elif name in COMMANDS:
        keep_freed_memory()
        with report_user_errors():
            module = vars(import_module(f"{__name__}.{MODULES.get(name, name)}"))
            called = module[name]
            if "words" in signature(called).parameters:
                called(words)
            else:
                from itmkit.cli.parser import call

                call(called, words, name, module.get("ARGUMENTS"))
    else:
        hint = did_you_mean(name, COMMANDS)
        fail(f"unknown command '{name}'; expected one of {', '.join(COMMANDS)}{hint}")
