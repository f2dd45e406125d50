"""The options of ``fit``, ``validate``, ``test`` and ``predict``, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from docstring_parser import parse

from itmkit.checks import InputError


def argument_texts(owner: Any) -> dict[str, str]:
    """What the docstring of a class or function says of its arguments."""
    found = parse(owner.__doc__ or "").params
    return {one.arg_name: " ".join(str(one.description).split()) for one in found}


@dataclass
class RunOptions:
    """Options that stand alone.

    Args:
        name: Folder, inside of trainer.default_root_dir (runs), in which the run gets its own.
            Where null, <system>-<name of the configuration>.
        seed_everything: Seed of the weights, dropout and all else that is drawn (data.seed: the
            order).
        ckpt_path: Checkpoint, or folder of a run: fit goes on with it, all else measures it.
        init_from: Checkpoint, or folder of a run, that fit starts a new run from: its weights, and
            neither its optimizer, counters, best score nor vocabulary.
        init_strict: Whether all weights of init_from must fit the model. Where false, those that do
            not are listed and left out.
        untrained: Whether the untrained model is measured too (fit, validate, test), or encodes
            where there is no checkpoint (predict). Where null, fit alone measures it, unless it
            resumes.
        exact_resume: Whether a run that is resumed is bit for bit the one that was not stopped.
            Where false, it resumes as Lightning does: changed options of the optimizer are ignored,
            random numbers are new, and all processes draw the same dropout.
        protocol: How the split is searched (test, validate): f30k-1k or coco-5k, all of it;
            coco-1k, five folds of 1,000 images; a number, so many folds; cxc or eccv, all of
            MS-COCO's test split by the judgements of Crisscrossed Captions or ECCV Caption; probes,
            all, and pairs of a true and a false sentence about each of the built-in scenes. Where
            null, all.
        protocol_files: Files of the judgements of cxc (sits_test.csv) or eccv (two JSON files), or
            their folder. Where null, those of the package eccv_caption, the extra eccv.
        keep: Best items and hardest negatives of each query that queries.parquet gets, with its
            rank (test, validate); 0: no such file.
        trec: Whether the folder trec gets runs and relevance judgements for ir-measures (test,
            validate).
        report: Whether fit writes report.html at its end, which needs itmkit[report]; see itmkit
            report.
    """

    name: str | None = None
    seed_everything: bool | int = 0
    ckpt_path: str | None = None
    init_from: str | None = None
    init_strict: bool = True
    untrained: bool | None = None
    exact_resume: bool = True
    protocol: int | str | None = None
    protocol_files: list[str] | str | None = None
    keep: int = 10
    trec: bool = False
    report: bool = os.environ.get("ITMKIT_REPORT", "true") != "false"


#: those that stand alone, with what is said of them
OPTIONS = {
    "config": "Name of a shipped configuration, or a file; of several, the later ones win.",
    "print_config": "Print the whole configuration, all defaults included, and leave.",
    **argument_texts(RunOptions),
    "help_trainer": "Show the options of Lightning's Trainer and of the checkpoints.",
    "help": "Show this.",
}
EVALUATION_OPTIONS = ("protocol", "protocol_files", "keep", "trec")
#: commands that an option or section is one of, where not of all
COMMANDS_OF = {
    **dict.fromkeys(("init_from", "init_strict", "report", "exact_resume"), ("fit",)),
    **dict.fromkeys(("checkpoint", "last"), ("fit",)),
    **dict.fromkeys(EVALUATION_OPTIONS, ("test", "validate")),
}
#: those that have options of their own, such as ``--trainer.max_epochs``
SECTIONS = {
    "model": "The system: --model CLASS, --model.ARGUMENT VALUE, and so on inside of arguments.",
    "data": "The data module and its dataset.",
    "trainer": "Lightning's Trainer, such as --trainer.max_epochs 5.",
    "checkpoint": "What the best checkpoint is (checkpoint.monitor, by default val/rsum).",
    "last": "How often the last checkpoint is written.",
}


def check_command(command: str, given: Iterable[str]) -> None:
    """Raise for an option of other commands alone.

    Args:
        command: that is run.
        given: names of options, as they were typed.

    Raises:
        InputError: with the option.
    """
    for name in given:
        own = COMMANDS_OF.get(name.partition(".")[0], (command,))
        if command not in own:
            instead = "; expected --ckpt_path for" if name == "init_from" else ", not of"
            raise InputError(f"{name} is an option of {' and '.join(own)}{instead} {command}")
