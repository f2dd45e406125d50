"""What follows from the size of the data: batch size, length of the training, evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from itmkit.configs.agreement import class_of, locate_class, value_of
from itmkit.data.exclusion import kept_captions
from itmkit.frozen_features import FrozenFeatureData
from itmkit.systems.build import build

MOST_CAPTIONS = 1024  # of a batch
MOST_IMAGES = 5000  # to validate on
FEW = 500  # photos to train on that deserve a warning
STEPS, STEPS_FOR = 300, 30_000  # steps for so many captions, as in mate/karpathy
EPOCHS = 20  # at most


def follows_size(config: Mapping[str, Any]) -> bool:
    """Whether the data of a configuration is one whose size is to be followed."""
    found = locate_class(class_of(config, "data") or "")
    return isinstance(found, type) and issubclass(found, FrozenFeatureData)


def values_by_size(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Options that follow from the size of the data, where none is given.

    The batch is at most a quarter of the training captions, so that an epoch has steps; a run is of
    20 epochs or 300 steps, whichever is less, and beyond 30,000 captions of more steps by the
    square root of their number; it is validated six times, on at most 5,000 images. All are ours.

    Args:
        config: sections by name.

    Returns:
        Values by option, and what was chosen in one line.

    Raises:
        InputError: the data is not what its configuration says.
    """
    data = build(config, {"data": FrozenFeatureData}, source="configuration")["data"]
    train = data.dataset(data.train_split)
    images = len(data.dataset(data.val_split)) if data.val_split is not None else 0
    captions = len(kept_captions(train, data.exclude))
    batch_size = min(MOST_CAPTIONS, 2 ** int(math.log2(max(2, captions // 4))))
    epochs = EPOCHS * -(-captions // batch_size)
    steps = min(epochs, round(STEPS * max(1.0, math.sqrt(captions / STEPS_FOR))))
    own: dict[str, Any] = {"data.batch_size": batch_size}
    if data.text_model is None and captions < 5000:
        own["data.vocabulary_min_count"] = 2
    if not _has(config, "trainer", "max_epochs", "max_steps", "max_time"):
        own["trainer.max_steps"] = steps
        if not _has(config, "trainer", "val_check_interval", "check_val_every_n_epoch"):
            own["trainer.val_check_interval"] = max(1, steps // 6)
            own["trainer.check_val_every_n_epoch"] = None
    if images > MOST_IMAGES:
        own["trainer.limit_val_batches"] = max(1, MOST_IMAGES // data.eval_batch_size)
    own = {name: value for name, value in own.items() if not _has(config, *name.rsplit(".", 1))}
    if len(train) < FEW:
        rank_zero_warn(
            f"{len(train)} photos to train on will hardly teach a system anything that it can use "
            "on others; some thousands are wanted"
        )
    chosen = ", ".join(f"{name} {'null' if one is None else one}" for name, one in own.items())
    size = f"{len(train)} photos with {captions} captions to train on, {images} to validate"
    return own, f"{size}: {chosen}"


def _has(config: Mapping[str, Any], section: str, *names: str) -> bool:
    return any(value_of(config, f"{section}.{name}") is not None for name in names)
