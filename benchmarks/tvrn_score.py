"""Time and memory of TVRN's scores: chunks of pairs against one pair at a time.

    python benchmarks/tvrn_score.py [--images 100] [--captions 500] [--chunk-pairs 64 512]

Each chunk setting runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from baselines import tvrn_pair_loop
from torch import Tensor

from itmkit.nn import RefinedSimilarity, l2_normalize
from itmkit.nn.visual_refinement import RefinedImage

DIM, REGIONS = 1024, 36


def make(
    images: int, captions: int, chunk_pairs: int
) -> tuple[RefinedSimilarity, RefinedImage, Tensor, Tensor]:
    """A similarity, refined images, captions of 8 to 20 words and their mask."""
    torch.manual_seed(0)
    similarity = RefinedSimilarity(DIM, num_regions=REGIONS, chunk_pairs=chunk_pairs).eval()
    lengths = torch.randint(8, 21, (captions,))
    text = l2_normalize(torch.randn(captions, 20, DIM))
    relations = (torch.rand(images, REGIONS, REGIONS) < 0.3).float()
    image = l2_normalize(torch.randn(images, REGIONS, DIM))
    with torch.no_grad():
        refined = similarity.visual(image, relations)
    return similarity, refined, text, torch.arange(20) < lengths[:, None]


def measure(images: int, captions: int, chunk_pairs: int) -> None:
    """Print seconds and the growth of the peak memory of one scoring."""
    similarity, refined, text, mask = make(images, captions, chunk_pairs)
    with torch.no_grad():
        few = RefinedImage(*(x if x is None else x[:2] for x in refined))
        similarity.score(few, text[:4], mask[:4])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        similarity.score(refined, text, mask)
        seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{seconds:.1f} {grown:.0f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--chunk-pairs", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.images, arguments.captions, arguments.measure)
        return
    pairs = arguments.images * arguments.captions
    similarity, refined, text, mask = make(8, 8, 64)
    captions = [words[real] for words, real in zip(text, mask, strict=True)]
    start = time.perf_counter()
    expected = tvrn_pair_loop(similarity, refined, captions)
    loop = (time.perf_counter() - start) / 64
    with torch.no_grad():
        off = (similarity.score(refined, text, mask) - expected).abs().max()
    print(f"one pair at a time: {1000 * loop:.2f} ms a pair (64 pairs); logits differ by {off:.1e}")
    for chunk_pairs in arguments.chunk_pairs:
        command = [sys.executable, *sys.argv, "--measure", str(chunk_pairs)]
        seconds, grown = map(float, subprocess.check_output(command, text=True).split())
        print(
            f"chunk_pairs={chunk_pairs}: {seconds:.1f} s for {pairs} pairs, "
            f"{1000 * seconds / pairs:.2f} ms a pair, {loop * pairs / seconds:.1f} times as fast; "
            f"peak memory grew by {grown:.0f} MB"
        )


if __name__ == "__main__":
    main()
