"""The laws of itmkit as checks for anybody's system, loss or encoder, from within any test.

Each check raises an ``AssertionError`` that says in one sentence which law is broken, and where.

Example:
    >>> from itmkit.losses import TripletLoss
    >>> check_loss(TripletLoss)
"""

from __future__ import annotations

import copy
import inspect
import math
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from itmkit.callbacks import MomentumTeacher
from itmkit.data.batch import Batch, Images, Texts
from itmkit.nn.contract import Encoder, LevelsEncoder, Tokens
from itmkit.retrieval import Encoding, evaluating
from itmkit.systems import Matcher

__all__ = ["check_encoder", "check_loss", "check_matcher", "check_pairs_alone", "check_processes"]

LARGEST_GRADIENT = 1e6


def check_matcher(
    make: Callable[[], Matcher], batch: Batch, *, processes: int = 2, pads_regions: bool = True
) -> None:
    """Check that a system keeps the laws: scores of pairs alone, any number of processes, numbers.

    Everything is computed in float64 on the CPU, but for the check of precision.

    Args:
        make: makes the system; called several times, each time with the same random seed.
        batch: a training batch of three or more images as the system's data gives it.
        processes: number of processes whose loss and gradients are compared with those of one;
            1 to leave that out.
        pads_regions: whether regions may be padded; False for a system with a fixed number.

    Raises:
        AssertionError: with the law that is broken.
    """
    matcher = _made(make).double()
    double = _double(batch)
    check_pairs_alone(matcher, double, pads_regions=pads_regions)
    _check_terms(matcher, double)
    _check_reload(make, double)
    _check_precision(_made(make), batch)
    if processes > 1:
        check_processes(make, batch, processes=processes)


def check_pairs_alone(
    matcher: Matcher, batch: Batch, *, tolerance: float = 1e-8, pads_regions: bool = True
) -> None:
    """Check that the score of a pair depends on that image and that caption alone.

    Scores, and those of a second stage, are compared with those of each pair alone, of the batch
    the other way round, with more padding that holds nonsense, of some rows, and of encodings that
    were joined from parts.

    Args:
        matcher: the system, of the precision of the batch.
        batch: any batch of it.
        tolerance: absolute, on scores.
        pads_regions: whether regions may be padded.

    Raises:
        AssertionError: with the scores that differ.
    """
    images, texts = batch.images, batch.texts
    n, m = len(images), len(texts)
    with evaluating(matcher):
        image, text = matcher.encode_image(images), matcher.encode_text(texts)
        _expect(len(image) == n, f"encode_image gives {len(image)} rows for {n} images")
        _expect(len(text) == m, f"encode_text gives {len(text)} rows for {m} captions")
        expected = _table(matcher, image, text)
        spread = expected.flatten(0, 1).std(0).min() if n * m > 1 else torch.tensor(1.0)
        _expect(bool(spread > 0), "all scores are equal: they say nothing of their pairs")

        def same(found: Tensor, wanted: Tensor, when: str) -> None:
            worst = float((found - wanted).abs().max())
            _expect(worst <= tolerance, f"scores change by {worst:.3g} {when}")

        for i, j in [(0, 0), (n - 1, 0), (0, m - 1), (n // 2, m // 2)]:
            lone_image = matcher.encode_image(_rows_of_images(images, slice(i, i + 1)))
            lone_text = matcher.encode_text(_unpadded(texts, j))
            alone = _table(matcher, lone_image, lone_text)[0, 0]
            same(alone, expected[i, j], f"where image {i} and caption {j} are alone")
        turned = list(range(n))[::-1]
        other = _table(matcher, matcher.encode_image(_rows_of_images(images, turned)), text)
        same(other[turned], expected, "with the order of the images")
        longer = matcher.encode_text(_padded_texts(texts, 3))
        same(_table(matcher, image, longer), expected, "with the padding of the captions")
        if images.features.ndim == 3 and pads_regions:
            wider = matcher.encode_image(_padded_regions(images, 2))
            same(_table(matcher, wider, text), expected, "with the padding of the regions")
        some = _table(matcher, image[[n - 1, 0]], text[[m - 1]])
        same(some, expected[[n - 1, 0]][:, [m - 1]], "in a smaller gallery")
        parts = [matcher.encode_text(_unpadded(texts, j)) for j in range(m)]
        same(_table(matcher, image, Encoding.cat(parts)), expected, "where encodings are joined")


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
    double = _double(batch)
    expected = _step(_made(make).double(), replace(double, sizes=None))
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
        _expect(codes == [0] * processes, f"the processes ended with the exit codes {codes}")
        for rank in range(processes):
            found = torch.load(f"{folder}/{rank}.pt", weights_only=True)
            for name, value in expected.items():
                _expect(name in found, f"{name} is missing on process {rank} of {processes}")
                worst = float((found[name] - value).abs().max()) if value.numel() else 0.0
                limit = 1e-8 * max(1.0, float(value.abs().max()) if value.numel() else 0.0)
                _expect(
                    worst <= limit,
                    f"{name} differs by {worst:.3g} on process {rank} of {processes}",
                )


def check_loss(make: Callable[[], nn.Module], *, seed: int = 0) -> None:
    """Check that a loss is safe: finite, float32 under autocast, with true and bounded gradients.

    The kind of loss is read off its first argument: ``scores`` for losses of scores ``(scores,
    positives=None)``, ``image`` for losses of vectors ``(image, text, image_ids=None)``.

    Args:
        make: makes the loss.
        seed: of the numbers drawn.

    Raises:
        AssertionError: with the batch on which a law is broken.
    """
    first = next(iter(inspect.signature(make().forward).parameters))
    _expect(
        first in ("scores", "image"), f"the first argument is {first!r}; expected scores or image"
    )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 1, 2, 3, 4])
    wide = torch.randn(2, 6, 8, generator=generator)
    for name, (image, text) in _vector_batches(wide).items():
        rows = len(image)
        inputs = (image @ text.T,) if first == "scores" else (image, text)
        if first == "scores" and name.startswith("norm"):
            continue
        truth = ids[:rows, None] == ids[:rows] if first == "scores" else ids[:rows]
        for marks in (None, truth):
            _check_value(make(), inputs, marks, f"the batch {name!r}")
    inputs = (0.5 * wide[0] @ wide[1].T,) if first == "scores" else (wide[0], wide[1])
    truth = ids[:, None] == ids if first == "scores" else ids
    everything = torch.ones_like(truth) if first == "scores" else torch.zeros_like(truth)
    _check_value(make(), inputs, everything, "a batch without a negative")
    for dtype in (torch.float16, torch.bfloat16):
        halves = [one.to(dtype) for one in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            value = make()(*halves, truth)
        _expect(value.dtype == torch.float32, f"the loss of {dtype} is {value.dtype}, not float32")
        exact = make()(*(half.float() for half in halves), truth)
        _expect(bool((value - exact).abs() <= 1e-6 * exact.abs() + 1e-6), f"{dtype} loses digits")
    doubles = [one.double().requires_grad_() for one in inputs]
    module = make().double().eval()
    torch.autograd.gradcheck(lambda *x: module(*x, truth), doubles)
    order = torch.randperm(len(ids), generator=generator)
    moved = [one[order] for one in (*inputs, truth)]
    if first == "scores":
        moved = [one[:, order] for one in moved]
    shuffled, plain = make()(*moved), make()(*inputs, truth)
    _expect(
        math.isclose(shuffled.item(), plain.item(), rel_tol=1e-5, abs_tol=1e-6),
        f"the loss depends on the order of the pairs: {plain.item()} and {shuffled.item()}",
    )


def check_encoder(make: Callable[[], nn.Module], inputs: Tensor, mask: Tensor | None) -> None:
    """Check that an encoder keeps the contract of :mod:`itmkit.nn.contract`.

    Args:
        make: makes the encoder.
        inputs: a stack of at least two items: pixels ``(B, 3, H, W)``, region features
            ``(B, N, D)`` or token ids ``(B, L)``.
        mask: ``(B, N)`` or ``(B, L)`` bool, True on real tokens; None where none is padded.

    Raises:
        AssertionError: with the part of the contract that is broken.
    """
    torch.manual_seed(0)
    encoder = make()
    _expect(isinstance(encoder, Encoder), "the encoder does not say its width as dim")
    levels = encoder.levels if isinstance(encoder, LevelsEncoder) else 1
    found = _levels(encoder(inputs, mask))
    _expect(len(found) == levels, f"the encoder gives {len(found)} levels; it says {levels}")
    for tokens, out_mask in found:
        _expect(
            tokens.ndim == 3 and (len(tokens), tokens.shape[2]) == (len(inputs), encoder.dim),
            f"tokens have the shape {tuple(tokens.shape)}; "
            f"expected ({len(inputs)}, tokens, {encoder.dim})",
        )
        shape = tokens.shape[:2]
        fits = out_mask is None or (out_mask.dtype == torch.bool and out_mask.shape == shape)
        _expect(fits, "the mask is not bool (B, N)")
    torch.stack([tokens.float().square().sum() for tokens, _ in found]).sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    _expect(not unused, f"no gradient reaches {unused[:3]}")
    encoder.double().eval()
    wide = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        together = _levels(encoder(wide, mask))
        alone = _levels(encoder(wide[:1], None if mask is None else mask[:1]))
        for (many, many_mask), (one, _) in zip(together, alone, strict=True):
            real = slice(None) if many_mask is None else many_mask[0]
            worst = float((many[0][real] - one[0][real]).abs().max())
            _expect(worst <= 1e-8, f"tokens change by {worst:.3g} with what else is in the stack")
        if mask is not None and not mask.all():
            fill = 7.0 if inputs.is_floating_point() else 1
            marked = mask.reshape(*mask.shape, *[1] * (inputs.ndim - 2))
            filled = _levels(encoder(wide.masked_fill(~marked, fill), mask))
            for (tokens, out_mask), (others, _) in zip(together, filled, strict=True):
                assert out_mask is not None
                worst = float((tokens - others)[out_mask].abs().max())
                _expect(worst <= 1e-8, f"tokens change by {worst:.3g} with what padding holds")
        again = make().double().eval()
        again.load_state_dict(encoder.state_dict())
        for (tokens, _), (others, _) in zip(together, _levels(again(wide, mask)), strict=True):
            _expect(torch.equal(tokens, others), "tokens differ after a state_dict round trip")


# ------------------------------------------------------------------------------------ the parts


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)


def _made(make: Callable[[], Matcher]) -> Matcher:
    torch.manual_seed(0)
    return make()


def _levels(out: Tokens | list[Tokens]) -> list[Tokens]:
    return out if isinstance(out, list) else [out]


def _check_terms(matcher: Matcher, batch: Batch) -> None:
    matcher.train()
    terms = _loss(matcher, batch)
    _expect("loss" in terms, f"loss gives {sorted(terms)}; expected a term 'loss'")
    for name, term in terms.items():
        _expect(term.ndim == 0, f"the term {name!r} has the shape {tuple(term.shape)}")
        _expect(bool(term.isfinite()), f"the term {name!r} is {term.item()}")
    matcher.zero_grad()
    terms["loss"].backward()
    norms = [p.grad.norm() for p in matcher.parameters() if p.grad is not None]
    _expect(bool(norms), "no gradient reaches any parameter")
    norm = float(torch.stack(norms).norm())
    _expect(norm <= LARGEST_GRADIENT, f"the norm of the gradient is {norm:.3g}")


def _check_reload(make: Callable[[], Matcher], batch: Batch) -> None:
    first, second = _made(make).double(), make().double()
    second.load_state_dict(first.state_dict())
    tables = []
    for matcher in (first, second):
        with evaluating(matcher):
            sides = matcher.encode_image(batch.images), matcher.encode_text(batch.texts)
            tables.append(_table(matcher, *sides))
    _expect(torch.equal(*tables), "scores differ after a state_dict round trip")


def _check_precision(matcher: Matcher, batch: Batch) -> None:
    matcher.train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = _loss(matcher, batch)
        with evaluating(matcher):
            images, texts = matcher.encode_image(batch.images), matcher.encode_text(batch.texts)
            scores = matcher.score(images, texts)
    for name, term in terms.items():
        _expect(term.dtype == torch.float32, f"under autocast the term {name!r} is {term.dtype}")
        _expect(bool(term.isfinite()), f"under autocast the term {name!r} is {term.item()}")
    _expect(scores.dtype == torch.float32, f"under autocast scores are {scores.dtype}")


def _loss(matcher: Matcher, batch: Batch) -> dict[str, Tensor]:
    """The loss of a batch, with the teachers that the system's callbacks would give it."""
    callbacks = matcher.configure_callbacks()
    for callback in callbacks if isinstance(callbacks, Sequence) else [callbacks]:
        if isinstance(callback, MomentumTeacher):
            callback.attach(matcher)
    return matcher.loss(batch)


def _table(matcher: Matcher, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of all pairs ``(n, m, stages)``, of the second stage too where there is one."""
    scores = [matcher.score(images, texts)]
    _expect(
        scores[0].shape == (len(images), len(texts)),
        f"score gives the shape {tuple(scores[0].shape)} for {len(images)} images and "
        f"{len(texts)} captions",
    )
    _expect(bool(scores[0].isfinite().all()), "a score is not finite")
    if matcher.has_second_stage:
        pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(texts)))
        scores.append(matcher.rerank(images, texts, pairs).view(scores[0].shape))
    return torch.stack(scores, dim=2)


def _double(batch: Batch) -> Batch:
    return replace(batch, images=_of_images(batch.images, lambda x: x.double()))


def _of_images(images: Images, change: Callable[[Tensor], Tensor]) -> Images:
    """The same with each tensor of numbers changed."""
    fields = {name: value for name, value in vars(images).items() if value is not None}
    floats = {name: change(value) for name, value in fields.items() if value.is_floating_point()}
    return replace(images, **floats)


def _rows_of_images(images: Images, rows: slice | Sequence[int]) -> Images:
    fields = {name: value for name, value in vars(images).items() if value is not None}
    return Images(**{name: value[rows] for name, value in fields.items()})


def _unpadded(texts: Texts, row: int) -> Texts:
    length = max(1, int(texts.mask[row].sum()))
    return Texts(texts.ids[row : row + 1, :length], texts.mask[row : row + 1, :length])


def _padded_texts(texts: Texts, words: int) -> Texts:
    mask = pad(texts.mask, (0, words))
    return Texts(pad(texts.ids, (0, words)).masked_fill(~mask, int(texts.ids.max())), mask)


def _padded_regions(images: Images, regions: int) -> Images:
    mask = images.mask
    if mask is None:
        mask = torch.ones(images.features.shape[:2], dtype=torch.bool)
    mask = pad(mask, (0, regions))
    real = mask[:, :, None] & mask[:, None, :]
    boxes, relations = images.boxes, images.relations
    return Images(
        pad(images.features, (0, 0, 0, regions)).masked_fill(~mask[:, :, None], 7.0),
        mask,
        None if boxes is None else pad(boxes, (0, 0, 0, regions)),
        None
        if relations is None
        else pad(relations, (0, regions, 0, regions)).masked_fill(~real, 0.7),
    )


def _step(matcher: Matcher, batch: Batch) -> dict[str, Tensor]:
    """What a training step leaves behind: terms, gradients averaged over processes, buffers."""
    matcher.train()
    terms = _loss(matcher, batch)
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
    return "fork" if b"__main__" in sent else "spawn"


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
    longest = max(1, int(batch.texts.mask[texts].sum(1).max()))
    share = Batch(
        images=_rows_of_images(batch.images, rows),
        texts=Texts(batch.texts.ids[texts, :longest], batch.texts.mask[texts, :longest]),
        image_ids=batch.image_ids[rows],
        text_image_ids=batch.text_image_ids[texts],
        text_ids=batch.text_ids[texts],
    )
    torch.save(_step(_made(make).double(), share), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _vector_batches(wide: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Batches on which losses break: one pair, equal vectors, wrong ones, any norm."""
    image, text = wide
    batches = {
        "of any six": (image, text),
        "of one pair": (image[:1], text[:1]),
        "of equal captions": (image, text[:1].expand(6, -1)),
        "of equal vectors": (image[:1].expand(6, -1), image[:1].expand(6, -1)),
        "of opposites": (image, -image),
        "right and large": (1e4 * image, 1e4 * image),
    }
    for norm in (0.0, 1e-12, 1e-8, 1e-4):
        small = norm * torch.nn.functional.normalize(image)
        batches[f"norm {norm}"] = (small, text)
    return batches


def _check_value(
    loss: nn.Module, inputs: Sequence[Tensor], marks: Tensor | None, where: str
) -> None:
    leaves = [copy.copy(one).detach().clone().requires_grad_() for one in inputs]
    value: Any = loss(*leaves, *([] if marks is None else [marks]))
    _expect(isinstance(value, Tensor) and value.ndim == 0, f"the loss of {where} is no scalar")
    _expect(bool(value.isfinite()), f"the loss of {where} is {value.item()}")
    _expect(value.requires_grad, f"the loss of {where} has no graph to its inputs")
    value.backward()
    for leaf in leaves:
        _expect(leaf.grad is not None, f"an input of {where} has no gradient")
        assert leaf.grad is not None
        norm = float(leaf.grad.norm())
        _expect(norm <= LARGEST_GRADIENT, f"the gradient of {where} has the norm {norm:.3g}")
