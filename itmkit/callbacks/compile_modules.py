"""Compiled modules, by configuration."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from itmkit.callbacks.submodules import check_names, find_submodule


class CompileModules(Callback):
    """Run submodules of a model through :func:`torch.compile`.

    Names in checkpoints stay as they are. The first steps take longer, and so does the first batch
    of a new shape. Random numbers of compiled dropout are others, so a run is not that of an
    uncompiled one. Measure before you keep it: on a CPU, where large products go through oneDNN
    either way, a compiled step of MATE took longer than an uncompiled one (docs/performance.md).

    Args:
        submodules: names of the submodules, as ``["image_encoder", "global_branch.image_pool"]``;
            dots lead further down.
        backend: of torch.compile.
        dynamic: whether shapes are expected to change; where None, torch finds out.

    Raises:
        InputError: no names, or when a run starts, a name that is no submodule.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CompileModules(["image_encoder"])], logger=False)
    """

    def __init__(
        self,
        submodules: Sequence[str],
        *,
        backend: str = "inductor",
        dynamic: bool | None = None,
    ) -> None:
        self.submodules = check_names(submodules)
        self.backend = backend
        self.dynamic = dynamic

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for name in self.submodules:
            find_submodule(pl_module, name).compile(backend=self.backend, dynamic=self.dynamic)
