"""TVRN's pair scores and training step against one pair at a time.

python -m benchmarks.bench_tvrn --images 100 --captions 500 --chunk-pairs 64 512

prints time and peak memory of a larger matrix, each setting in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines_tvrn import pair_loop
from benchmarks.machine import gemm_rate
from benchmarks.memory import peak_megabytes
from benchmarks.timing import Comparison, interleave
from itmkit.losses import HingeCrossEntropyLoss
from itmkit.nn import RefinedSimilarity, l2_normalize
from itmkit.nn.functional import map_tensors

DIM, REGIONS, LONGEST = 1024, 36, 20
OF_A_PAIR = "the loop over pairs, timed on {0} × {0} pairs and scaled up"


def make(
    images: int, captions: int, chunk_pairs: int = 256
) -> tuple[RefinedSimilarity, Tensor, Tensor, Tensor, Tensor]:
    """A similarity; regions and their relations; captions of 8 to 20 words and their mask."""
    torch.manual_seed(0)
    similarity = RefinedSimilarity(DIM, num_regions=REGIONS, chunk_pairs=chunk_pairs).eval()
    lengths = torch.randint(8, LONGEST + 1, (captions,))
    text = l2_normalize(torch.randn(captions, LONGEST, DIM))
    relations = (torch.rand(images, REGIONS, REGIONS) < 0.3).float()
    image = l2_normalize(torch.randn(images, REGIONS, DIM))
    return similarity, image, relations, text, torch.arange(LONGEST) < lengths[:, None]


def comparisons() -> Iterator[Comparison]:
    """Scores, a training step, and the memory of two chunk settings."""
    yield _scores(64, few=6)
    yield _step(32, few=4)
    small, large = (_measure_apart(64, 64, chunk_pairs) for chunk_pairs in (64, 512))
    yield Comparison(
        "tvrn.scores_memory",
        "growth of the peak memory, chunk_pairs=64",
        "chunk_pairs=512",
        [small[1]],
        [large[1]],
        unit="MB",
    )


def _scores(size: int, few: int) -> Comparison:
    similarity, image, relations, text, mask = make(size, size)
    captions = [words[real] for words, real in zip(text, mask, strict=True)]
    with torch.no_grad():
        refined = similarity.visual(image, relations)
        part = map_tensors(lambda x: x[:few], refined)
        difference = similarity.score(refined, text, mask)[:few, :few] - pair_loop(
            similarity, part, captions[:few]
        )
        seconds = interleave(
            {
                "ours": lambda: similarity.score(refined, text, mask),
                "loop": lambda: pair_loop(similarity, part, captions[:few]),
            },
            repeats=3,
            warmup=0,
        )
    words = float(mask.sum()) / size
    return Comparison(
        "tvrn.scores",
        f"pair scores, {size} × {size}, {REGIONS} × {DIM}, captions of 8 to {LONGEST} words",
        OF_A_PAIR.format(few),
        seconds["ours"],
        [second * (size / few) ** 2 for second in seconds["loop"]],
        target=8,
        difference=difference.abs().max().item(),
        floors={"products": size**2 * _products(words) / gemm_rate(torch.float32)},
    )


def _step(size: int, few: int) -> Comparison:
    similarity, image, relations, text, mask = make(size, size)
    similarity.train()
    loss = HingeCrossEntropyLoss()

    def step(count: int, loop: bool) -> Tensor:
        similarity.zero_grad()
        refined = similarity.visual(image[:count], relations[:count])
        if loop:
            pairs = zip(text[:count], mask[:count], strict=True)
            logits = pair_loop(similarity, refined, [words[real] for words, real in pairs])
        else:
            logits = similarity.score(refined, text[:count], mask[:count])
        loss(logits.sigmoid()).backward()
        return torch.cat([p.grad.flatten() for p in similarity.parameters() if p.grad is not None])

    found, expected = step(few, loop=False), step(few, loop=True)
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    seconds = interleave(
        {"ours": lambda: step(size, loop=False), "loop": lambda: step(few, loop=True)},
        repeats=3,
        warmup=0,
    )
    return Comparison(
        "tvrn.training_step",
        f"forward, loss and backward, {size} × {size}, {REGIONS} × {DIM}",
        OF_A_PAIR.format(few),
        seconds["ours"],
        [second * (size / few) ** 2 for second in seconds["loop"]],
        target=4,
        difference=difference,
        note="difference: of the gradients, relative to the largest",
    )


def _products(words: float, similarity_dim: int = 256) -> float:
    """Operations that a pair's matrix products need at least, for a caption of ``words`` words."""
    gru, gate = 2 * words * DIM * 3 * DIM, 2 * words * DIM * DIM
    attention = 2 * words * REGIONS * (DIM + 3 * DIM) + 2 * 2 * words * 2 * REGIONS * 2 * DIM
    vectors = 2 * 2 * words * DIM * similarity_dim
    reasoning = 2 * 3 * 2 * 2 * words * similarity_dim**2
    return gru + gate + attention + vectors + reasoning


def _measure(images: int, captions: int, chunk_pairs: int) -> None:
    """Print seconds, and the growth of the peak memory in MB, of one scoring."""
    similarity, image, relations, text, mask = make(images, captions, chunk_pairs)
    with torch.no_grad():
        refined = similarity.visual(image, relations)
        few = map_tensors(lambda x: x[:2], refined)
        similarity.score(few, text[:4], mask[:4])
        before = peak_megabytes()
        start = time.perf_counter()
        similarity.score(refined, text, mask)
        seconds = time.perf_counter() - start
    print(seconds, peak_megabytes() - before)


def _measure_apart(images: int, captions: int, chunk_pairs: int) -> tuple[float, float]:
    sizes = [str(size) for size in (images, captions, chunk_pairs)]
    command = [sys.executable, "-m", "benchmarks.bench_tvrn", "--measure", *sizes]
    seconds, megabytes = map(float, subprocess.check_output(command, text=True).split())
    return seconds, megabytes


def main() -> None:
    """Print the figures of a larger matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--chunk-pairs", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.measure:
        _measure(*arguments.measure)
        return
    loop = _scores(8, few=8).theirs[0] / 64
    print(f"one pair at a time: {1000 * loop:.2f} ms a pair (64 pairs)")
    pairs = arguments.images * arguments.captions
    for chunk_pairs in arguments.chunk_pairs:
        seconds, grown = _measure_apart(arguments.images, arguments.captions, chunk_pairs)
        print(
            f"chunk_pairs={chunk_pairs}: {seconds:.1f} s for {pairs} pairs, "
            f"{1000 * seconds / pairs:.2f} ms a pair, {loop * pairs / seconds:.1f} times as fast; "
            f"peak memory grew by {grown:.0f} MB"
        )


if __name__ == "__main__":
    main()
