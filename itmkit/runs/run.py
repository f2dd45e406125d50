"""What a command does with a system: train, measure, encode, and report it in a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from itmkit._internals import callbacks_of
from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.metrics import bootstrap_recall
from itmkit.retrieval import Gallery, Protocol, gallery_file
from itmkit.runs.checkpoint_files import check_same_data, read_checkpoint
from itmkit.runs.folder import discarded_on_error
from itmkit.runs.initial_weights import load_initial_weights
from itmkit.runs.measure import STAGES, Measured, check_keep, measure, report, write_ranks
from itmkit.systems import Matcher
from itmkit.systems.vocabulary import complete_embeddings
from itmkit.training.checkpoints import BestCheckpoint, LastCheckpoint
from itmkit.training.resume import ExactResume
from itmkit.training.signals import exit_on_signal

Command = Literal["validate", "test"]


class Run:
    """Trains, measures or encodes with a system, prints a table of recall, writes ``metrics.json``.

    This is what ``itmkit fit``, ``validate``, ``test`` and ``predict`` do with what they have
    built. A signal ends the process with a line that says how to go on
    (:func:`~itmkit.training.exit_on_signal`); an error before the first training step removes the
    folder.

    Args:
        trainer: with what it takes to save and resume: :class:`BestCheckpoint`,
            :class:`LastCheckpoint`, :class:`ExactResume`, :class:`StopOnSignal`, each if wanted.
        model: the system.
        data: its data.
        folder: that files are written to; None to write none.
        runs: above it; folders up to there are removed with it where that leaves them empty.

    Example:
        >>> from functools import partial
        >>> from itmkit.data import ShapesDataset
        >>> from itmkit.nn import BiGRU, RegionProjection
        >>> from itmkit.systems import DAIM
        >>> dataset = partial(ShapesDataset, length=8, regions=True)
        >>> data = ImageTextData(dataset, batch_size=4, vocabulary_min_count=1)
        >>> model = DAIM(RegionProjection(in_dim=437, dim=8), BiGRU(embed_dim=8, dim=8))
        >>> trainer = Trainer(
        ...     accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> rows = Run(trainer, model, data).fit()
        the weights are not saved: trainer.enable_checkpointing is false
        <BLANKLINE>
        val: 8 images × 40 captions, no checkpoint, step 10
        ...
        untrained ...
        trained   ...
        training took ... minutes
        >>> 0 <= rows["trained"].recall["rsum"] <= 600
        True
    """

    def __init__(
        self,
        trainer: Trainer,
        model: Matcher,
        data: ImageTextData,
        folder: Path | None = None,
        runs: Path | None = None,
    ) -> None:
        self.trainer, self.model, self.data = trainer, model, data
        self.folder, self.runs = folder, runs
        self.best = next(iter(callbacks_of(trainer, BestCheckpoint)), None)
        self.last = next(iter(callbacks_of(trainer, LastCheckpoint)), None)

    def fit(
        self,
        ckpt_path: str | None = None,
        *,
        init_from: str | None = None,
        init_strict: bool = True,
        untrained: bool | None = None,
    ) -> dict[str, Measured]:
        """Train, and measure the untrained model and the best checkpoint.

        Args:
            ckpt_path: checkpoint of a run that is resumed.
            init_from: checkpoint whose weights a new run starts from.
            init_strict: whether all of its weights must fit.
            untrained: whether the model is measured before; None: unless the run is resumed.

        Raises:
            InputError: a checkpoint does not fit, or was validated on other data.
        """
        rows: dict[str, Measured] = {}
        with self._guarded():
            self.data.trainer = self.trainer  # knows the number of processes
            self.data.setup("fit")  # training data at fault is found before anything is measured
            if (swapped := self.data.write_swapped(self.folder)) is not None:
                rank_zero_only(print)(f"captions at images of others: {swapped}")
            steps_before = 0
            if ckpt_path is not None:
                checkpoint = read_checkpoint(ckpt_path, "ckpt_path", type(self.model))
                check_same_data(checkpoint, ckpt_path, self.data)
                steps_before = checkpoint["global_step"]
                if not callbacks_of(self.trainer, ExactResume):
                    rank_zero_warn(
                        "exact_resume is false: the run resumes as Lightning does, with the "
                        "options of the checkpoint's optimizer"
                    )
            if init_from is not None:
                system = type(self.model) if init_strict else None
                checkpoint = read_checkpoint(init_from, "init_from", system)
                complete_embeddings(self.model, self.data)
                load_initial_weights(
                    init_from, checkpoint, self.model, self.data, strict=init_strict
                )
            fast = bool(vars(self.trainer)["fast_dev_run"])
            if not fast and (untrained or (untrained is None and ckpt_path is None)):
                with isolate_rng():  # training is the same with and without
                    name = "untrained" if init_from is None else "initial"
                    rows[name] = self._measure("validate")
            start = time.monotonic()
            self.trainer.fit(
                self.model, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True
            )
            minutes = (time.monotonic() - start) / 60
        if fast:
            return rows
        self._report_training(steps_before)
        with self._guarded(), self._without_loggers():
            rows["trained"] = self._measure(
                "validate", self.best.best_model_path if self.best else None
            )
        self._report(rows)
        rank_zero_only(print)(f"training took {minutes:.1f} minutes")
        return rows

    def evaluate(
        self,
        command: Command,
        ckpt_path: str | None = None,
        *,
        untrained: bool = False,
        protocol: Protocol | str | int | None = None,
        protocol_files: Sequence[str | Path] | str | Path | None = None,
        keep: int = 0,
        trec: bool = False,
    ) -> dict[str, Measured]:
        """Measure a checkpoint with intervals, and the untrained model before if wanted.

        Args:
            command: which of the Trainer's methods, and so of the splits.
            ckpt_path: the checkpoint; None: the weights as they are, untrained.
            untrained: whether these are measured too.
            protocol: which images and captions are searched together; see
                :func:`itmkit.retrieval.rank_queries`.
            protocol_files: of a protocol with judgements; see
                :func:`itmkit.evaluation.read_judgements`.
            keep: how many of the best items and hardest negatives of each query are written to
                ``queries.parquet``, with its rank; 0 for no such file.
            trec: whether the folder ``trec`` gets runs and relevance judgements too.

        Raises:
            InputError: the split does not fit the protocol, or ``val_split`` is None.
        """
        rows = {}
        searched: dict[str, Any] = {"protocol": protocol, "protocol_files": protocol_files}
        with self._guarded():
            check_keep(keep, trec)
            name = self.data.evaluated_split(STAGES[command])
            if untrained and ckpt_path is not None:
                with self._without_loggers():
                    rows["untrained"] = self._measure(command, **searched)
            label = "untrained" if ckpt_path is None else "trained"
            measured = self._measure(command, ckpt_path, **searched, keep=keep)
            if measured.recall:
                about = replace(measured.on, intervals=bootstrap_recall(measured.folds))
                measured = measured._replace(on=about)
                if self.folder is not None and self.trainer.is_global_zero:
                    split = self.data.split(name)
                    write_ranks(self.folder, measured, split, keep=keep, trec=trec)
            rows[label] = measured
        self._report(rows)
        return rows

    def predict(self, ckpt_path: str | None = None) -> Gallery:
        """Encode the test split and save it as ``gallery.safetensors``; see :class:`Gallery`."""
        with self._guarded():
            if self.trainer.world_size > 1:
                raise InputError(
                    f"the number of processes is {self.trainer.world_size}; expected 1 for predict"
                )
            parts = self.trainer.predict(
                self.model, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True
            )
            gallery = Gallery.cat(cast(list[Gallery], parts))
            split = self.data.split(self.data.test_split)
            gallery.names = [split.names[row] for row in gallery.image_ids.tolist()]
            gallery.captions = [split.captions[row] for row in gallery.text_ids.tolist()]
            if self.folder is not None:
                path = self.folder / gallery_file.FILE_NAME
                gallery.save(path)
                untrained = ", of an untrained model" if ckpt_path is None else ""
                print(f"\ngallery: {path}{untrained}")
            return gallery

    def _measure(self, command: Command, ckpt_path: str | None = None, **options: Any) -> Measured:
        parts = (self.trainer, self.model, self.data)
        return measure(*parts, command, ckpt_path=ckpt_path or None, folder=self.folder, **options)

    def _report_training(self, steps_before: int) -> None:
        """Say if nothing was trained, and where the weights are, if not in ``best.ckpt``."""
        report, trainer = rank_zero_only(print), self.trainer
        if trainer.global_step == steps_before:
            report(
                f"nothing was trained: the run was at step {steps_before} already "
                f"(trainer.max_epochs {trainer.max_epochs}, max_steps {trainer.max_steps})"
            )
        if self.last is None or self.best is None:
            report("the weights are not saved: trainer.enable_checkpointing is false")
        elif not self.best.best_model_path:
            validated = any(name.startswith("val/") for name in trainer.callback_metrics)
            why = f"{self.best.monitor} was not logged" if validated else "no validation ran"
            if self.best.save_top_k == 0:
                why = "checkpoint.save_top_k is 0"
            report(f"there is no best.ckpt ({why}); the weights at the end are in {self.last.path}")

    def _report(self, rows: dict[str, Measured]) -> None:
        if (path := self.data.write_skipped(self.folder)) is not None:
            print(f"skipped images: {path}")
        rows = {name: measured for name, measured in rows.items() if measured.recall}
        if rows and self.trainer.is_global_zero:
            report(rows, self.folder)

    @contextmanager
    def _without_loggers(self) -> Iterator[None]:
        loggers, self.trainer.loggers = self.trainer.loggers, []
        try:
            yield
        finally:
            self.trainer.loggers = loggers

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Exit cleanly on a signal; remove the folder on an error before the first step."""
        with (
            exit_on_signal(self.trainer),
            discarded_on_error(self.folder, self.runs, lambda: self.trainer.global_step > 0),
        ):
            yield
