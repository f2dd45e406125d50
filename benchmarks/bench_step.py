"""A training step of MATE under Lightning, with what the command line adds, and in a bare loop."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.timing import Comparison, interleave
from itmkit.data.batch import Batch, Images, Texts
from itmkit.nn import BiGRU, RegionProjection
from itmkit.systems import MATE
from itmkit.training.loggers import MetricsTable
from itmkit.training.progress import RunProgressBar
from itmkit.training.resume import ExactResume

CLIP = 2.0


def comparisons() -> Iterator[Comparison]:
    """A step of the published size, and one so small that it shows what a step costs at least."""
    for name, target, steps, sizes in (
        ("mate", 1.1, 8, {"batch_size": 128, "regions": 36, "in_dim": 2048, "dim": 1024}),
        ("mate_small", None, 60, {"batch_size": 16, "regions": 4, "in_dim": 32, "dim": 32}),
    ):
        ours, theirs, difference = _alternate(steps, **sizes)
        shape = "{batch_size} images × {regions} × {in_dim}, BiGRU, width {dim}".format(**sizes)
        yield Comparison(
            name=f"step.{name}",
            work=f"training step of MATE, {shape}, in Lightning",
            against="the same modules in a bare loop",
            ours=ours,
            theirs=theirs,
            target=target,
            better="overhead",
            difference=difference,
            note="forward, losses, backward, clipping, AdamW and the teacher in both; in Lightning "
            "also the loggers, progress bar and callbacks of the command line.",
        )
    yield _compiled()


def _compiled() -> Comparison:
    """What :class:`itmkit.callbacks.CompileModules` gains in a bare step."""
    batch = make_batch(64, 36, 2048)
    eager, compiled = BareLoop(make_mate(2048, 1024)), BareLoop(make_mate(2048, 1024))
    start = time.perf_counter()
    for parts in (compiled.student, compiled.teacher):
        for name in ("image_encoder", "global_branch.image_pool", "global_branch.text_pool"):
            parts.get_submodule(name).compile()
    compiled.step(batch)
    first = time.perf_counter() - start
    seconds = interleave(
        {"ours": lambda: compiled.step(batch), "theirs": lambda: eager.step(batch)}, repeats=5
    )
    return Comparison(
        name="step.mate_compiled",
        work="bare step of MATE, 64 images × 36 × 2048, width 1024, image side and pools compiled",
        against="the same, not compiled",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        note=f"The first compiled step took {first:.0f} s.",
    )


def make_mate(in_dim: int, dim: int, vocabulary: int = 8000) -> MATE:
    """MATE on region features and words, without the fusion branch."""
    torch.manual_seed(0)
    return MATE(RegionProjection(in_dim, dim), BiGRU(vocabulary, 300, dim))


def make_batch(
    batch_size: int, regions: int, in_dim: int, *, views: int = 2, vocabulary: int = 8000
) -> Batch:
    """Features of images, and captions of 8 to 20 words, ``views`` of each."""
    torch.manual_seed(1)
    texts = batch_size * views
    lengths = torch.randint(8, 21, (texts,))
    mask = torch.arange(20) < lengths[:, None]
    ids = torch.randint(1, vocabulary, mask.shape).masked_fill(~mask, 0)
    rows = torch.arange(batch_size)
    return Batch(
        Images(torch.randn(batch_size, regions, in_dim)),
        Texts(ids, mask),
        rows,
        rows.repeat_interleave(views),
        torch.arange(texts),
    )


class BareLoop:
    """What MATE does in a step, without Lightning and without itmkit's systems and callbacks."""

    def __init__(self, mate: MATE) -> None:
        self.mate = mate.train()
        names = ("image_encoder", "text_encoder", "global_branch")
        self.student = nn.ModuleDict({name: getattr(mate, name) for name in names})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(mate.parameters(), lr=2e-4, weight_decay=1e-4)

    def step(self, batch: Batch) -> Tensor:
        """One step; returns the loss."""
        image, text = _encode(self.student, batch)
        with torch.no_grad():
            taught_image, taught_text = _encode(self.teacher, batch)
            taught_image = taught_image.repeat_interleave(2, dim=0)
        mate, ids = self.mate, batch.image_ids.repeat_interleave(2)
        triplet: Any = mate.triplet
        triplet.negatives = "all"
        loss: Tensor = (
            mate.triplet(image @ text.T, image_ids=batch.image_ids)
            + mate.hect(image, text, ids)
            + mate.weights["distillation"]
            * mate.distillation(image, text, taught_image, taught_text, ids)
        )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mate.parameters(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(self.student.parameters()), 1 - mate.momentum
            )
            for old, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
                old.copy_(new)
        return loss.detach()


def _encode(parts: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
    branch: Any = parts["global_branch"]
    images, texts = batch.images, batch.texts
    regions = parts["image_encoder"](images.features, images.mask)
    words = parts["text_encoder"](texts.inputs, texts.mask)
    return branch.image(images.features, images.mask, regions), branch.text(
        texts.inputs, texts.mask, words
    )


class _Alternating(Callback):
    """Does a step of the bare loop after each of Lightning's, and times both.

    A step of Lightning lasts from the end of the bare step before it to the same place of its own
    batch, so all that Lightning does in between is in it.
    """

    def __init__(self, loop: BareLoop) -> None:
        self.loop = loop
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.difference = 0.0
        self._start: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(0)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        end = time.perf_counter()
        torch.manual_seed(batch_idx)
        start = time.perf_counter()
        loss = self.loop.step(batch)
        bare_end = time.perf_counter()
        if batch_idx < 2:  # the second has the update in it; later, training magnifies rounding
            difference = float((loss - outputs["loss"]).abs() / loss.abs())
            self.difference = max(self.difference, difference)
        if self._start is not None:  # not the first step, which lasts longer in both
            self.ours.append(end - self._start)
            self.theirs.append(bare_end - start)
        torch.manual_seed(batch_idx + 1)
        self._start = time.perf_counter()


def _alternate(
    steps: int, *, batch_size: int, regions: int, in_dim: int, dim: int
) -> tuple[list[float], list[float], float]:
    """Seconds of the steps of either way, and how far their losses are apart, relatively."""
    batch = make_batch(batch_size, regions, in_dim)
    mate, bare = make_mate(in_dim, dim), make_mate(in_dim, dim)
    alternating = _Alternating(BareLoop(bare))
    batches: Any = [batch] * (steps + 1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=CLIP,
            logger=[MetricsTable(folder), TensorBoardLogger(folder)],
            callbacks=[ExactResume(), RunProgressBar(), alternating],
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(mate, DataLoader(batches, batch_size=None))
    return alternating.ours, alternating.theirs, alternating.difference
