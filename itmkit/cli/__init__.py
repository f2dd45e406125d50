"""The command line: ``itmkit COMMAND …``, of which ``itmkit --help`` has the list."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import itmkit
from itmkit.checks import did_you_mean
from itmkit.cli.errors import fail, report_user_errors

HELP = """\
usage: itmkit <command> [--config NAME_OR_PATH] [options]

Train, measure and use image-text matching systems.

commands:
  fit        train a system; its folder gets the configuration, logs, checkpoints and recall
  validate   measure recall on the validation split
  test       measure recall on the test split
  predict    encode the images and captions of the test split with a checkpoint, to disk
  extract    compute a backbone's features of a folder of images, once, to disk
  index      make an index of a folder of pictures with a trained model, or bring it up to date
  search     find pictures of an index by words, a picture, or both
  configs    list the shipped configurations, or print one: configs show NAME

options:
  -h, --help     show this, or with a command all of its options
  --version      show the version

shipped configurations: {configs}

examples:
  itmkit fit --config mate/shapes --trainer.max_epochs 5
  itmkit test --ckpt_path runs/mate-shapes/latest
  itmkit index photos/ --model mate-shapes && itmkit search mate-shapes "two dogs on a beach"
"""
MATCHER_COMMANDS = ("fit", "validate", "test", "predict")
COMMANDS = (*MATCHER_COMMANDS, "extract", "index", "search", "configs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Errors that the user can mend end in one line on stderr and exit status 2; ``ITMKIT_DEBUG=1`` in
    the environment shows their tracebacks.

    Args:
        argv: the words behind ``itmkit``; those of this process if None.

    Example:
        >>> main(["--version"])
        itmkit ...
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (here := os.getcwd()) not in sys.path:  # a configuration may name classes of the user's
        sys.path.append(here)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        from itmkit.configs import config_names

        print(HELP.format(configs=", ".join(config_names())), end="")
    elif command == "--version":
        print(f"itmkit {itmkit.__version__}")
    elif command == "extract":
        from itmkit.cli.extract import extract

        with report_user_errors():
            extract(arguments[1:])
    elif command == "index":
        from itmkit.cli.index import index

        with report_user_errors():
            index(arguments[1:])
    elif command == "search":
        from itmkit.cli.search import search

        with report_user_errors():
            search(arguments[1:])
    elif command == "configs":
        from itmkit.cli.configs import configs

        with report_user_errors():
            configs(arguments[1:])
    elif command in MATCHER_COMMANDS:
        from itmkit.cli.arguments import check_words

        with report_user_errors():
            check_words(arguments[1:])
            from itmkit.cli.help import asked_help

            purpose = re.search(rf"  {command} +(.+)", HELP)
            if purpose and (text := asked_help(command, arguments[1:], purpose[1])):
                print(text)
                return
            from itmkit.cli.matcher_cli import MatcherCLI
            from itmkit.data import ImageTextData
            from itmkit.distributed import leave
            from itmkit.systems import Matcher

            MatcherCLI(Matcher, ImageTextData, arguments)
            leave()
    else:
        hint = did_you_mean(command, COMMANDS)
        fail(f"unknown command '{command}'; expected one of {', '.join(COMMANDS)}{hint}")
