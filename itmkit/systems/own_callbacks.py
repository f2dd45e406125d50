"""Callbacks that a system brings itself."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule

from itmkit._internals import callbacks_of
from itmkit.checks import InputError

#: callbacks of systems, which may still be a Trainer's when it is used again
_MADE: WeakSet[Callback] = WeakSet()


def own_callbacks(
    system: LightningModule, callbacks: Sequence[Callback], arguments: str
) -> Sequence[Callback]:
    """The callbacks, where the Trainer has no others of their classes, which Lightning would drop.

    Args:
        system: whose ``configure_callbacks`` gives them.
        callbacks: what it gives.
        arguments: names of the arguments of the system that they are made from.

    Raises:
        InputError: with a class that both have.
    """
    _MADE.update(callbacks)
    try:
        trainer = system.trainer
    except RuntimeError:  # asked for without a Trainer
        return callbacks
    for kind in {type(callback) for callback in callbacks}:
        if any(given not in _MADE for given in callbacks_of(trainer, kind)):
            name = type(system).__name__
            raise InputError(
                f"trainer.callbacks has a {kind.__name__}, and {name} makes its own ({arguments}); "
                "expected one of them"
            )
    return callbacks
