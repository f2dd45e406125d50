"""``itmkit fit | validate | test | predict``: Lightning's command line, with a folder for each run.

Every run gets a new folder ``<trainer.default_root_dir>/<name>/<time>``; a resumed run too, whose
``config.yaml`` names the checkpoint it went on from. What a configuration and the command line say
always wins over what a checkpoint remembers.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from itmkit.checks import InputError, check_count
from itmkit.cli.arguments import composed, split_options
from itmkit.cli.cpu_precision import precision_on_cpu
from itmkit.cli.matcher_parser import MatcherParser
from itmkit.cli.quiet import quieten_lightning
from itmkit.configs.agreement import short_names
from itmkit.files import user_path, write_text
from itmkit.metrics.protocol import check_protocol_files, find_protocol
from itmkit.pretrained import weights_follow
from itmkit.training import (
    AtomicCheckpointIO,
    BatchNormSync,
    BestCheckpoint,
    Curves,
    ExactResume,
    LastCheckpoint,
    MetricsTable,
    Run,
    RunProgressBar,
    RunRecord,
    StopOnSignal,
)
from itmkit.training.checkpoint_files import (
    checkpoint_file,
    config_of,
    read_checkpoint,
)
from itmkit.training.run import Command
from itmkit.training.run_folder import (
    check_name,
    claim,
    discarded_on_error,
    note_job,
    point_latest_to,
    requeued_from,
)

_NO_RANKS = ("fit", "predict")


class MatcherCLI(LightningCLI):
    """Parse, build and run one command.

    Args:
        model_class: base class of the systems that a configuration may name.
        data_class: base class of the data modules that a configuration may name.
        arguments: the command and its options.

    Raises:
        FileNotFoundError: a ``--config`` is neither a file nor a shipped configuration.
        InputError: the checkpoint is of another system, or none.
    """

    def __init__(
        self,
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
        arguments: list[str],
    ) -> None:
        quieten_lightning()
        short_names()  # imported, so that a configuration may give them
        self._command = ["itmkit", *arguments]
        self._given = dict(split_options(arguments[1:]))
        arguments, self.config_stems = composed(self._with_config_of_the_run(arguments))
        self.run_folder: Path | None = None
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,
            trainer_defaults={"default_root_dir": "runs", "num_sanity_val_steps": 0},
            seed_everything_default=0,
            parser_kwargs={"prog": "itmkit", "allow_abbrev": False},
            parser_class=MatcherParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
        )

    def subcommands(  # type: ignore[override]  # static there, where all commands are made
        self,
    ) -> dict[str, set[str]]:
        """The one command that is run, with the arguments of its method that are not options.

        A parser of all options takes a while, and Lightning makes one for each command.
        """
        command = self._command[1]
        more = {"weights_only", "verbose", "return_predictions"}
        return {command: LightningCLI.subcommands()[command] | more}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of ours, see :data:`itmkit.cli.options.OPTIONS`; all commands take them."""
        parser.add_argument("--name", type=str | None, default=None)
        parser.add_argument("--untrained", type=bool | None, default=None)
        parser.add_argument("--init_from", type=str | None, default=None)
        parser.add_argument("--init_strict", type=bool, default=True)
        parser.add_argument("--exact_resume", type=bool, default=True)
        parser.add_argument("--protocol", type=int | str | None, default=None)
        parser.add_argument("--protocol_files", type=list[str] | str | None, default=None)
        parser.add_argument("--keep", type=int, default=10)
        parser.add_argument("--trec", type=bool, default=False)
        parser.add_class_arguments(BestCheckpoint, "checkpoint", skip={"save_last"})
        parser.add_class_arguments(LastCheckpoint, "last", skip={"dirpath"})
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/rsum",
                "checkpoint.mode": "max",
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and find the checkpoint to start from."""
        self.config = parser.parse_args(args)
        command, options = self.config.subcommand, self.config[self.config.subcommand]
        given = self._given.keys() & {"ckpt_path", "init_from"}
        if command != "fit":
            if "init_from" in given:
                raise InputError(
                    f"init_from is an option of fit; expected --ckpt_path for {command}"
                )
            options.init_from = None
        for name in (
            self._given.keys() & {"protocol", "protocol_files", "keep", "trec"}
            if command in _NO_RANKS
            else ()
        ):
            raise InputError(f"{name} is an option of test and validate, not of {command}")
        check_count(0, keep=options.keep)
        check_protocol_files(find_protocol(options.protocol), options.protocol_files)
        if options.ckpt_path is not None and options.init_from is not None:
            if len(given) != 1:
                raise InputError(
                    f"ckpt_path is '{options.ckpt_path}' and init_from '{options.init_from}'; "
                    "expected one: ckpt_path goes on with a run, init_from starts a new one from "
                    "its weights"
                )
            options["init_from" if "ckpt_path" in given else "ckpt_path"] = None
        if options.ckpt_path is not None:
            resumes = command == "fit"
            path = checkpoint_file(options.ckpt_path, "ckpt_path", resumes=resumes)
            read_checkpoint(path, "ckpt_path", _system(options), resumes=resumes)
            options.ckpt_path = str(path)
        elif options.init_from is not None:
            options.init_from = str(checkpoint_file(options.init_from, "init_from"))
        # Lightning would let the checkpoint's hyper-parameters override the command line now.
        self._ckpt_path, options.ckpt_path = options.ckpt_path, None

    @staticmethod
    def _with_config_of_the_run(words: list[str]) -> list[str]:
        """A command with the configuration of the run whose checkpoint it names, if with none."""
        given = dict(split_options(words[1:]))
        path = given.get("ckpt_path")
        if path in (None, "", "null") or given.keys() & {"config", "c"}:
            return words
        checkpoint_file(path, "ckpt_path", resumes=words[0] == "fit")
        config = config_of(path)
        return words if config is None else [words[0], f"--config={config}", *words[1:]]

    def before_instantiate_classes(self) -> None:
        """Claim the folder of the run, and let loggers write there that would write just here."""
        options = self.config[self.subcommand]
        options.ckpt_path = self._ckpt_path
        if options.name is None:
            system = options.model.class_path.rpartition(".")[2].lower()
            options.name = "-".join([system, *self.config_stems])
        check_name(options.name)
        if self.subcommand == "predict" and options.ckpt_path is None and not options.untrained:
            raise InputError(
                "ckpt_path is null; expected a checkpoint, or --untrained true to encode with the "
                "weights as they are before training"
            )
        if options.trainer.barebones:
            raise InputError("trainer.barebones is true; expected false: a run logs and measures")
        self.runs = user_path(options.trainer.default_root_dir or "runs")
        if self.subcommand == "fit" and options.ckpt_path is None:
            last = requeued_from(self.runs, options.name)
            if last is not None:
                read_checkpoint(last, "ckpt_path", _system(options))
                options.ckpt_path, options.init_from = str(last), None
                rank_zero_only(print)(f"requeued: going on from {last}")
        whole = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        self.plain_config: dict[str, Any] = whole[self.subcommand]
        if options.trainer.fast_dev_run or not _is_first_process(options.trainer.num_nodes):
            return
        suffix = "" if self.subcommand == "fit" else f"-{self.subcommand}"
        self.run_folder = claim(self.runs, options.name, suffix=suffix)
        for logger in _as_list(options.trainer.logger):
            arguments = getattr(logger, "init_args", {})
            if arguments.get("save_dir", "") in (None, "."):
                arguments["save_dir"] = str(self.run_folder)

    def instantiate_classes(self) -> None:
        with discarded_on_error(self.run_folder, self.runs):
            with self._weights_that_follow():
                super().instantiate_classes()
            self.model.model_config = self.plain_config["model"]
            if self.run_folder is not None:
                text = yaml.safe_dump(self.plain_config, sort_keys=False, allow_unicode=True)
                write_text(self.run_folder / "config.yaml", text)
                note_job(self.run_folder)

    def _weights_that_follow(self) -> AbstractContextManager[None]:
        """Fetch no pretrained weights that a checkpoint overwrites before anything is measured."""
        options = self.config[self.subcommand]
        if options.init_from is not None and options.init_strict:  # loaded before all else
            option = "init_from"
        elif options.ckpt_path is not None and not options.untrained:
            option = "ckpt_path"
        else:
            return nullcontext()
        checkpoint = read_checkpoint(Path(options[option]), option, _system(options))
        return weights_follow(checkpoint.get("pretrained"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        made, folder = self.config_init[self.subcommand], self.run_folder
        options = made.trainer
        callbacks = _as_list(options.callbacks)
        if self.subcommand == "fit":
            if made.exact_resume:
                callbacks.append(ExactResume(self.plain_config))
            callbacks.append(LambdaCallback(on_train_start=self._announce))
        callbacks += [RunRecord(folder, self.plain_config, self._command), StopOnSignal()]
        kwargs |= precision_on_cpu(options.precision, options.accelerator)
        if options.sync_batchnorm:
            kwargs["plugins"] = [*_as_list(options.plugins), BatchNormSync()]
        if options.fast_dev_run:
            kwargs["enable_checkpointing"] = False
            callbacks = [one for one in callbacks if not isinstance(one, Checkpoint)]
        elif options.enable_checkpointing is not False:
            callbacks += [made.checkpoint, made.last]
        bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
        if options.enable_progress_bar is not False and not bars:
            callbacks.append(RunProgressBar())
        if folder is not None:
            kwargs["default_root_dir"] = folder
            for callback in callbacks:
                if isinstance(callback, (ModelCheckpoint, LastCheckpoint)):
                    callback.dirpath = callback.dirpath or str(folder / "checkpoints")
            if options.logger is not False:
                loggers = _as_list(options.logger) or [Curves(folder)]
                kwargs["logger"] = [MetricsTable(folder), *loggers]
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def fit(self, model: Any, datamodule: Any, ckpt_path: str | None) -> None:
        """Train, and show the recall of the untrained model above that of the best checkpoint."""
        options = self.config[self.subcommand]
        self._run.fit(
            ckpt_path,
            init_from=options.init_from,
            init_strict=options.init_strict,
            untrained=options.untrained,
        )

    def validate(self, model: Any, datamodule: Any, ckpt_path: str | None) -> None:
        """Measure recall on the validation split."""
        self._evaluate("validate", ckpt_path)

    def test(self, model: Any, datamodule: Any, ckpt_path: str | None) -> None:
        """Measure recall on the test split."""
        self._evaluate("test", ckpt_path)

    def _evaluate(self, command: Command, ckpt_path: str | None) -> None:
        options = self.config[self.subcommand]
        self._run.evaluate(
            command,
            ckpt_path,
            untrained=bool(options.untrained),
            protocol=options.protocol,
            protocol_files=options.protocol_files,
            keep=options.keep,
            trec=options.trec,
        )

    def predict(self, model: Any, datamodule: Any, ckpt_path: str | None) -> None:
        """Encode the test split and save it as ``gallery.safetensors``."""
        self._run.predict(ckpt_path)

    @property
    def _run(self) -> Run:
        return Run(self.trainer, self.model, self.datamodule, self.run_folder, self.runs)

    def _announce(self, *_: Any) -> None:
        # Not earlier: all processes have read their checkpoint, where `latest` may lead to it.
        if self.run_folder is not None:
            point_latest_to(self.run_folder)
            print(f"run folder: {self.run_folder}")


def _is_first_process(num_nodes: int) -> bool:
    """Whether this process is the one that writes, before a Trainer can tell."""
    # Lightning's own launcher names the node, and the rank only to the processes that it starts.
    node = os.environ.get("NODE_RANK", "0") if num_nodes > 1 else "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and int(node) == 0


def _system(options: Any) -> type:
    """The class of the system that options name, which they were checked against."""
    return cast(type, locate(options.model.class_path))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return list(value)
    return [] if value is None or isinstance(value, bool) else [value]
