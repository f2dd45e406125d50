"""Cross-attention scores against a loop over the captions, and against the bare product."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines_cross_attention import lean_loop, published_loop
from benchmarks.machine import copy_rate, gemm_rate, too_slow
from benchmarks.memory import peak_megabytes
from benchmarks.timing import Comparison, Skipped, interleave
from itmkit.nn.attention.cross_attention import cross_attention_scores

IMAGES, REGIONS, CAPTIONS, DIM, SMOOTH = 128, 36, 128, 1024, 9.0
Direction = Literal["t2i", "i2t"]


def inputs() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Images, captions of 8 to 20 words, their mask, and the captions without padding."""
    torch.manual_seed(0)
    lengths = torch.randint(8, 21, (CAPTIONS,))
    image = F.normalize(torch.randn(IMAGES, REGIONS, DIM), dim=2)
    text = F.normalize(torch.randn(CAPTIONS, 20, DIM), dim=2)
    mask = torch.arange(20) < lengths[:, None]
    return image, text, mask, [words[real] for words, real in zip(text, mask, strict=True)]


def floors(words: int, products: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Seconds of the matrix products alone, and of reading the tokens and writing the dots once."""
    regions = IMAGES * REGIONS
    elements = (words + regions) * DIM + words * regions
    return {
        "products": products * 2 * words * regions * DIM / gemm_rate(dtype),
        "memory": 2 * 4 * elements / copy_rate(),
    }


def comparisons() -> Iterator[Comparison | Skipped]:
    """Forward in fp32 and bf16, forward with backward, peak memory; in both directions."""
    image, text, mask, captions = inputs()
    packed, regions = torch.cat(captions), image.flatten(0, 1)
    no_bf16 = too_slow(torch.bfloat16)
    sizes = f"{IMAGES} images x {REGIONS} x {DIM}, {CAPTIONS} captions of 8 to 20 words"
    for direction in cast(tuple[Direction, ...], ("t2i", "i2t")):
        ours = partial(cross_attention_scores, image, text, None, mask, direction=direction)
        loop = partial(published_loop, image, captions, direction, SMOOTH)
        lean = partial(lean_loop, image, captions, direction, SMOOTH)
        half = partial(ours, bf16_products=True)
        with torch.no_grad():
            off = (ours() - loop()).abs().max().item()
            ways: dict[str, Callable[[], object]] = {
                "ours": ours,
                "loop": loop,
                "lean": lean,
                "product": lambda: packed @ regions.T,
            }
            if not no_bf16:
                off_half = (half() - loop()).abs().max().item()
                ways["half"] = half
            seconds = interleave(ways, repeats=7)
        name = f"cross_attention.{direction}"
        yield Comparison(
            f"{name}_forward",
            f"{direction} scores, {sizes}",
            "the published loop over captions",
            seconds["ours"],
            seconds["loop"],
            target=8,
            difference=off,
            floors=floors(len(packed), 1),
        )
        yield Comparison(
            f"{name}_forward_lean",
            f"{direction} scores",
            "a loop over captions without needless copies",
            seconds["ours"],
            seconds["lean"],
        )
        yield Comparison(
            f"{name}_forward_product",
            f"{direction} scores",
            "the bare product of all regions and words",
            seconds["ours"],
            seconds["product"],
            target=1.6,
            better="overhead",
        )
        bf16 = (f"{name}_forward_bf16", f"{direction} scores, bf16_products")
        if no_bf16:
            yield Skipped(*bf16, no_bf16)
        else:
            yield Comparison(
                *bf16,
                "the published loop, fp32",
                seconds["half"],
                seconds["loop"],
                target=25,
                difference=off_half,
                floors=floors(len(packed), 1, torch.bfloat16),
            )
        seconds, off = backward(image, text, mask, direction)
        yield Comparison(
            f"{name}_backward",
            f"{direction} scores, forward and backward",
            "the published loop",
            seconds["ours"],
            seconds["loop"],
            target=14,
            difference=off,
            floors=floors(len(packed), 3),
            note="difference: of the gradients, relative to the largest",
        )
        yield Comparison(
            f"{name}_memory",
            f"{direction} scores, forward and backward, growth of the peak memory",
            "the published loop",
            [peak_memory("ours", direction)],
            [peak_memory("loop", direction)],
            target=4,
            unit="MB",
        )


def backward(
    image: Tensor, text: Tensor, mask: Tensor, direction: Direction
) -> tuple[dict[str, list[float]], float]:
    """Seconds of forward and backward, and the relative difference of the gradients."""
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    weight = torch.randn(IMAGES, CAPTIONS)
    lengths = mask.sum(1).tolist()

    def ours() -> None:
        image.grad = text.grad = None
        scores = cross_attention_scores(image, text, None, mask, direction=direction)
        (weight * scores).sum().backward()

    def loop() -> None:
        image.grad = text.grad = None
        captions = [words[:length] for words, length in zip(text, lengths, strict=True)]
        (weight * published_loop(image, captions, direction, SMOOTH)).sum().backward()

    found = []
    for way in (ours, loop):
        way()
        found.append(torch.cat([x.grad.flatten() for x in (image, text) if x.grad is not None]))
    difference = ((found[0] - found[1]).abs().max() / found[1].abs().max()).item()
    return interleave({"ours": ours, "loop": loop}, repeats=3, warmup=0), difference


def peak_memory(way: str, direction: str) -> float:
    """MB by which one forward and backward raises the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_cross_attention", way, direction]
    return float(subprocess.check_output(command, text=True))


def main(way: str, direction: Direction) -> None:
    """Print the growth of this process's peak memory."""
    torch.set_num_threads(2)
    image, text, mask, captions = inputs()
    image, text = image.requires_grad_(), text.requires_grad_()
    few = cross_attention_scores(image[:2], text[:2], None, mask[:2], direction=direction)
    few.sum().backward()  # what a first backward pass allocates once
    before = peak_megabytes()
    if way == "ours":
        scores = cross_attention_scores(image, text, None, mask, direction=direction)
    else:
        captions = [words[real] for words, real in zip(text, mask, strict=True)]
        scores = published_loop(image, captions, direction, SMOOTH)
    scores.sum().backward()
    print(peak_megabytes() - before)


if __name__ == "__main__":
    main(sys.argv[1], cast(Direction, sys.argv[2]))
