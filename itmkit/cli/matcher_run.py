"""What ``itmkit fit | validate | test | predict`` do: parse, build and run, in a folder each.

Every run gets a new folder ``<trainer.default_root_dir>/<name>/<time>``; a resumed run too, whose
``config.yaml`` names the checkpoint it went on from. What a configuration and the command line say
always wins over what a checkpoint remembers.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from itmkit.checks import InputError, check_count
from itmkit.cli.arguments import composed, config_stems, split_options
from itmkit.cli.matcher_parser import command_parser
from itmkit.cli.options import EVALUATION_OPTIONS, check_command
from itmkit.cli.report import report_of_training
from itmkit.configs.agreement import short_names
from itmkit.distributed import leave
from itmkit.files import user_path
from itmkit.metrics.protocol import check_protocol_files, find_protocol
from itmkit.pretrained import weights_follow
from itmkit.runs import Run, make_trainer
from itmkit.runs.checkpoint_files import checkpoint_file, config_of, read_checkpoint
from itmkit.runs.folder import (
    check_name,
    claim,
    discarded_on_error,
    is_first_process,
    requeued_from,
)
from itmkit.runs.quiet import quieten_lightning
from itmkit.runs.trainer import as_list


def run_command(command: str, words: list[str]) -> None:
    """Parse, build and run one command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        words: its options.

    Raises:
        FileNotFoundError: a ``--config`` is neither a file nor a shipped configuration.
        InputError: options exclude each other; the checkpoint is of another system, or none.
    """
    quieten_lightning()
    short_names()  # imported, so that a configuration may give them
    given = {name for name, _ in split_options(words)}
    line = ["itmkit", command, *words]
    words = _with_config_of_the_run(command, words)
    parser = command_parser(command)
    options = parser.parse_args(composed([command, *words]).words)
    _check(command, options, given)
    if options.seed_everything is not False:
        seed = None if options.seed_everything is True else options.seed_everything
        options.seed_everything = seed_everything(seed, workers=True)
    if options.name is None:
        system = options.model.class_path.rpartition(".")[2].lower()
        options.name = "-".join([system, *config_stems(words)])
    check_name(options.name)
    runs = user_path(options.trainer.default_root_dir or "runs")
    checkpoint = _find_checkpoint(command, options, given, runs)
    config: dict[str, Any] = yaml.safe_load(parser.dump(options, skip_unset=False))
    folder = None
    if not options.trainer.fast_dev_run and is_first_process(options.trainer.num_nodes):
        folder = claim(runs, options.name, suffix="" if command == "fit" else f"-{command}")
        for logger in as_list(options.trainer.logger):
            arguments = getattr(logger, "init_args", {})
            if arguments.get("save_dir", "") in (None, "."):
                arguments["save_dir"] = str(folder)
    with discarded_on_error(folder, runs):
        with nullcontext() if checkpoint is None else weights_follow(checkpoint.get("pretrained")):
            made = parser.instantiate(options)
        trainer = make_trainer(
            folder,
            config=config,
            command=line,
            fits=command == "fit",
            exact_resume=made.exact_resume,
            checkpoints=[made.checkpoint, made.last],
            **made.trainer,
        )
        made.model.model_config = config["model"]
    run = Run(trainer, made.model, made.data, folder, runs)
    if command == "fit":
        rows = run.fit(
            options.ckpt_path,
            init_from=options.init_from,
            init_strict=options.init_strict,
            untrained=options.untrained,
        )
        measured = "trained" in rows and bool(rows["trained"].recall)
        if options.report and measured and run.last is not None and folder is not None:
            leave()  # one process makes the page alone
            report_of_training(folder, trainer.strategy.root_device)
        elif options.report and "report" in given:
            rank_zero_only(print)(
                "no report: it is of a run with checkpoints and validations, without fast_dev_run"
            )
    elif command == "predict":
        run.predict(options.ckpt_path)
    else:
        run.evaluate(
            "test" if command == "test" else "validate",
            options.ckpt_path,
            untrained=bool(options.untrained),
            **{name: options[name] for name in EVALUATION_OPTIONS},
        )


def _with_config_of_the_run(command: str, words: list[str]) -> list[str]:
    """Options with the configuration of the run whose checkpoint they name, if with none."""
    given = dict(split_options(words))
    path = given.get("ckpt_path")
    if path in (None, "", "null") or given.keys() & {"config", "c"}:
        return words
    checkpoint_file(path, "ckpt_path", resumes=command == "fit")
    config = config_of(path)
    return words if config is None else [f"--config={config}", *words]


def _check(command: str, options: Any, given: Collection[str]) -> None:
    """Raise for options that this command does not take, and for values that no type tells."""
    check_command(command, given)
    if command != "fit":
        options.init_from = None
    check_count(0, keep=options.keep)
    check_protocol_files(find_protocol(options.protocol), options.protocol_files)
    if options.trainer.barebones:
        raise InputError("trainer.barebones is true; expected false: a run logs and measures")


def _find_checkpoint(
    command: str, options: Any, given: Collection[str], runs: Path
) -> dict[str, Any] | None:
    """Put the file to start from in the place of the folder or link that names it.

    Returns:
        The checkpoint, where it overwrites all weights before anything is measured: then none that
        are pretrained have to be fetched.
    """
    named = {"ckpt_path", "init_from"} & set(given)
    if options.ckpt_path is not None and options.init_from is not None:
        if len(named) != 1:
            raise InputError(
                f"ckpt_path is '{options.ckpt_path}' and init_from '{options.init_from}'; expected "
                "one: ckpt_path goes on with a run, init_from starts a new one from its weights"
            )
        options["init_from" if "ckpt_path" in named else "ckpt_path"] = None
    resumes, overwrites = command == "fit", not options.untrained
    if "init_strict" in given and options.init_from is None:
        raise InputError("init_strict is given, and init_from is null; expected both")
    if command == "predict" and {"ckpt_path", "untrained"} <= set(given) and options.untrained:
        raise InputError("untrained is true, and ckpt_path is given; expected one of them")
    system = cast(type, locate(options.model.class_path))  # which the options were checked against
    checkpoint = None
    if resumes and options.ckpt_path is None and (last := requeued_from(runs, options.name)):
        rank_zero_only(print)(f"requeued: going on from {last}")
        options.ckpt_path, options.init_from = str(last), None
    if options.ckpt_path is not None:
        path = checkpoint_file(options.ckpt_path, "ckpt_path", resumes=resumes)
        checkpoint = read_checkpoint(path, "ckpt_path", system, resumes=resumes)
        options.ckpt_path = str(path)
    elif options.init_from is not None:
        path = checkpoint_file(options.init_from, "init_from")
        overwrites = options.init_strict
        checkpoint = read_checkpoint(path, "init_from", system if overwrites else None)
        options.init_from = str(path)
    elif not resumes and not options.untrained:
        does = "encode with" if command == "predict" else "measure"
        message = (
            f"ckpt_path is null; expected a checkpoint, or --untrained true to {does} the weights "
            "as they are before training"
        )
        if command == "predict":
            raise InputError(message)
        rank_zero_warn(message)
    return checkpoint if overwrites else None
