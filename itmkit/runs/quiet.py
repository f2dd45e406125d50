"""Messages of Lightning that are not shown."""

from __future__ import annotations

import logging
import warnings


def quieten_lightning() -> None:
    """Do not show tips of Lightning, nor warnings that do not apply to a Matcher."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_relevant)
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        r".*sync_dist=True",  # recall is computed from all processes' items, and so the same on all
        r"Using `DistributedSampler` with the dataloaders",  # items that come twice count once
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_relevant(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    hidden = ("Tip:", "`LightningModule.configure_callbacks`", "`weights_only` was not set")
    return not any(words in message for words in hidden)
