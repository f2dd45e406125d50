"""The table ``metrics.csv`` and the TensorBoard curves of a run."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from itmkit.files import atomic_write


class MetricsTable(CSVLogger):
    """Lightning's CSV logger that loses no rows where a process is killed.

    Lightning writes the whole table anew, over the old one, whenever a column is added.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return cast(ExperimentWriter, self._experiment)


class Curves(TensorBoardLogger):
    """Lightning's TensorBoard logger whose hyper-parameters stand beside the curve ``val/rsum``.

    Lightning shows hyper-parameters only with a number that it logs for them alone.
    """

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        super().log_hyperparams(params, metrics, step)
        if metrics is None and params:
            plain = (bool, int, float, str)
            shown = {k: v if isinstance(v, plain) else str(v) for k, v in self.hparams.items()}
            writer = self.experiment._get_file_writer()
            for summary in hparams(shown, {"val/rsum": None}):
                writer.add_summary(summary)


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        with open(path, newline="") as file:
            writer.writerows(csv.DictReader(file))
        with atomic_write(path) as table:
            table.write(text.getvalue().encode())
