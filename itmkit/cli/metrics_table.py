"""The table ``metrics.csv`` of a run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

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
