"""The table ``metrics.csv`` and the TensorBoard curves of a run."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from itmkit._internals import rewrite_atomically


class MetricsTable(CSVLogger):
    """Lightning's CSV logger, as ``metrics.csv`` in a folder, that loses no rows to a kill.

    Lightning writes the whole table anew, over the old one, whenever a column is added.

    Args:
        folder: of the table; made if missing. A table that is there is replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = MetricsTable(folder)
        ...     for metrics in ({"loss": 0.5}, {"recall": 80.0}):
        ...         table.log_metrics(metrics, step=3)
        ...         table.save()
        ...     print(open(f"{folder}/metrics.csv").read())
        loss,recall,step
        0.5,,3
        ,80.0,3
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="")
        rewrite_atomically(self.experiment)  # which is made now: it warns of a folder with files


class Curves(TensorBoardLogger):
    """Lightning's TensorBoard logger whose hyper-parameters stand beside a curve.

    Lightning shows hyper-parameters only with a number that it logs for them alone.

    Args:
        folder: of the event files.
        beside: the metric of that curve.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curves = Curves(folder, beside="val/loss")
        ...     curves.log_hyperparams({"lr": 0.1})
        ...     curves.log_metrics({"val/loss": 0.5}, step=3)
        ...     curves.finalize("success")
        ...     print(*sorted(os.listdir(folder)))
        events.out.tfevents... hparams.yaml
    """

    def __init__(self, folder: str | Path, beside: str = "val/rsum") -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self.beside = beside

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
            for summary in hparams(shown, {self.beside: None}):
                self.experiment.file_writer.add_summary(summary)
