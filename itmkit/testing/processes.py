"""Whether a system trains on several processes as on one."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from itmkit.callbacks import MomentumTeacher
from itmkit.data.batch import Batch
from itmkit.data.padding import trimmed
from itmkit.systems import Matcher
from itmkit.testing.batches import doubled
from itmkit.testing.expect import expect


def check_processes(make: Callable[[], Matcher], batch: Batch, *, processes: int = 2) -> None:
    """Check that loss, gradients and buffers on several processes are those of one.

    The images are shared out unequally over real processes of this machine (gloo), in float64;
    gradients are averaged as DDP averages them.

    Args:
        make: makes the system; best a function of a module that can be imported.
        batch: training batch with at least one image a process.
        processes: how many.

    Raises:
        AssertionError: with the term, gradient or buffer that differs by more than 1e-8.
    """
    double = doubled(batch)
    expected = _step(made(make).double(), replace(double, sizes=None))
    context: Any = multiprocessing.get_context(_start_method(make))
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=_run_share, args=(make, double, rank, processes, folder))
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
            if worker.is_alive():
                worker.kill()
        codes = [worker.exitcode for worker in workers]
        expect(codes == [0] * processes, f"the processes ended with the exit codes {codes}")
        for rank in range(processes):
            found = torch.load(f"{folder}/{rank}.pt", weights_only=True)
            for name, value in expected.items():
                expect(name in found, f"{name} is missing on process {rank} of {processes}")
                worst = float((found[name] - value).abs().max()) if value.numel() else 0.0
                limit = 1e-8 * max(1.0, float(value.abs().max()) if value.numel() else 0.0)
                expect(
                    worst <= limit,
                    f"{name} differs by {worst:.3g} on process {rank} of {processes}",
                )


def made(make: Callable[[], Matcher]) -> Matcher:
    """The system that ``make`` makes, always with the same weights."""
    torch.manual_seed(0)
    return make()


def loss_of(matcher: Matcher, batch: Batch) -> dict[str, Tensor]:
    """The loss of a batch, with the teachers that the system's callbacks would give it."""
    attach_teachers(matcher)
    return matcher.loss(batch)


def attach_teachers(matcher: Matcher) -> None:
    """Give a system the teachers that its callbacks would give it at the start of training."""
    callbacks = matcher.configure_callbacks()
    for callback in callbacks if isinstance(callbacks, Sequence) else [callbacks]:
        if isinstance(callback, MomentumTeacher):
            callback.attach(matcher)


def _step(matcher: Matcher, batch: Batch) -> dict[str, Tensor]:
    """What a training step leaves behind: terms, gradients averaged over processes, buffers."""
    matcher.train()
    terms = loss_of(matcher, batch)
    terms["loss"].backward()
    found = {f"the term {name!r}": term.detach() for name, term in terms.items()}
    for name, parameter in matcher.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            if dist.is_initialized():
                dist.all_reduce(grad)
                grad /= dist.get_world_size()
            found[f"the gradient of {name!r}"] = grad
    found |= {f"the buffer {name!r}": value for name, value in matcher.named_buffers()}
    return {name: value.clone() for name, value in found.items()}


def _start_method(make: Callable[[], Matcher]) -> str:
    """A fresh process where ``make`` can be sent to one; a fork for functions of a function.

    A fork fails where this process has used autograd's threads.
    """
    try:
        sent = pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError):
        return "fork"
    return "fork" if b"__main__" in sent else "forkserver"


def _run_share(
    make: Callable[[], Matcher], batch: Batch, rank: int, size: int, folder: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    # The first process gets one image less than its share, where there are enough.
    n, views = len(batch.images), len(batch.texts) // len(batch.images)
    bounds = [rank * n // size for rank in range(size + 1)]
    if bounds[1] > 1:
        bounds[1] -= 1
    rows = slice(bounds[rank], bounds[rank + 1])
    texts = slice(rows.start * views, rows.stop * views)
    share = Batch(
        images=batch.images.rows(rows),
        texts=trimmed(batch.texts.rows(texts)),
        image_ids=batch.image_ids[rows],
        text_image_ids=batch.text_image_ids[texts],
        text_ids=batch.text_ids[texts],
    )
    torch.save(_step(made(make).double(), share), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
