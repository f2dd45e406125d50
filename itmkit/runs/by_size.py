"""What follows from the size of the data: batch size, length of the training, evaluation."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from itmkit.configs.agreement import class_of, locate_class, value_of
from itmkit.data.exclusion import kept_captions
from itmkit.frozen_features import FrozenFeatureData
from itmkit.runs.trainer import process_count
from itmkit.systems.build import build

MOST_CAPTIONS = 1024  # of a batch
MOST_IMAGES = 5000  # to validate on
FEW_CAPTIONS = 5000  # for which a word counts from its second time
FEW = 500  # photos to train on that deserve a warning
SEEN, SEEN_FOR = 300 * 1024, 30_000  # captions a run sees for so many, as in mate/karpathy
EPOCHS = 20  # at most


def follow_size(config: Mapping[str, Any], *, may_be_elsewhere: bool = False) -> dict[str, Any]:
    """Print and return :func:`values_by_size`, where the data is one whose size is to be followed.

    Args:
        config: sections by name.
        may_be_elsewhere: whether data that is not here has no size, and is no error.
    """
    found = locate_class(class_of(config, "data") or "")
    if not isinstance(found, type) or not issubclass(found, FrozenFeatureData):
        return {}
    try:
        values, chosen = values_by_size(config)
    except FileNotFoundError:
        if may_be_elsewhere:
            return {}
        raise
    rank_zero_only(print)(chosen, file=sys.stderr)
    return values


def batch_size_for(captions: int) -> int:
    """Captions of a batch of all processes: at most a quarter of all, so that an epoch has steps.

    Example:
        >>> [batch_size_for(captions) for captions in (50, 500, 5_000, 50_000)]
        [8, 64, 1024, 1024]
    """
    return min(MOST_CAPTIONS, 1 << (max(2, captions // 4).bit_length() - 1))


def steps_for(captions: int, batch_size: int) -> int:
    """Steps of a run: 20 epochs, or 300 steps of 1,024 captions, whichever is less.

    Beyond 30,000 captions there are more by the square root of their number.

    Args:
        captions: to train on.
        batch_size: captions of a step, of all processes.

    Example:
        >>> [steps_for(captions, 1024) for captions in (5_000, 15_000, 30_000, 120_000)]
        [98, 293, 300, 600]
        >>> steps_for(30_000, batch_size=512)
        600
    """
    seen = SEEN * max(1.0, math.sqrt(captions / SEEN_FOR))
    return math.ceil(min(EPOCHS * captions, seen) / batch_size)


def values_by_size(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Options that follow from the size of the data, where none is given.

    They are the batch (:func:`batch_size_for`) and the length of the run (:func:`steps_for`), which
    is validated six times and at its end, on at most 5,000 images; of fewer than 5,000 captions,
    words that are there twice are known. All are ours. The processes share a batch, and a step
    takes the captions of all batches whose gradients accumulate.

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
    trainer = config.get("trainer") or {}
    processes = process_count(trainer)
    given = _has(config, "data", "batch_size")
    batch_size = data.batch_size if given else max(2, batch_size_for(captions) // processes)
    own: dict[str, Any] = {"data.batch_size": batch_size}
    builds_words = not _has(config, "data", "text_model", "text_features", "tokenizer")
    if builds_words and captions < FEW_CAPTIONS:
        own["data.vocabulary_min_count"] = 2
    if not _has(config, "trainer", "max_epochs", "max_steps", "max_time"):
        batches = trainer.get("accumulate_grad_batches") or 1
        own["trainer.max_steps"] = steps = steps_for(captions, batch_size * processes * batches)
        if not _has(config, "trainer", "val_check_interval", "check_val_every_n_epoch"):
            own["trainer.val_check_interval"] = max(1, steps * batches // 6)
            own["trainer.check_val_every_n_epoch"] = None
    if images > MOST_IMAGES:
        own["trainer.limit_val_batches"] = max(1, MOST_IMAGES // (data.eval_batch_size * processes))
    own = {name: value for name, value in own.items() if not _has(config, *name.rsplit(".", 1))}
    if len(train) < FEW:
        rank_zero_warn(
            f"{len(train)} photos to train on will hardly teach a system anything that it can use "
            "on others; some thousands are wanted"
        )
    chosen = ", ".join(f"{name} {'null' if one is None else one}" for name, one in own.items())
    size = f"{len(train)} photos with {captions} captions to train on, {images} to validate"
    if processes > 1:
        size += f", {processes} processes"
    return own, f"{size}: {chosen}"


def _has(config: Mapping[str, Any], section: str, *names: str) -> bool:
    return any(value_of(config, f"{section}.{name}") is not None for name in names)
