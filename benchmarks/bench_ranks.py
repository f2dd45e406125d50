"""Ranks, evaluation without a score matrix, and intervals, at the size of the COCO 5K test."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines_ranks import argsort_ranks, ranks_by_definition, resampled_recalls
from benchmarks.machine import copy_rate, gemm_rate
from benchmarks.memory import peak_megabytes
from benchmarks.timing import Comparison, interleave
from itmkit.evaluation import write_queries
from itmkit.metrics import QueryRanks, bootstrap_recall
from itmkit.metrics.functional import cross_modal_recall, recall_from_ranks
from itmkit.retrieval import Encoding, Gallery, evaluate, rank_queries, score_matrix
from itmkit.systems import cosine_scores

IMAGES, CAPTIONS, DIM, CHUNK = 5_000, 25_000, 1024, 512
SAMPLES = 1_000
SIZE = f"{IMAGES:,} × {CAPTIONS:,}"


class Cosine(torch.nn.Module):
    """A matcher whose score is the product of unit vectors."""

    device = torch.device("cpu")
    rerank_top_k, rerank_weight = 0, 0.0

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """All products."""
        return cosine_scores(images.vector, texts.vector)


MATCHER: Any = Cosine()  # evaluation asks for the score only


def comparisons() -> Iterator[Comparison]:
    """Ranks of a matrix, evaluation without one and its memory, and intervals of recall."""
    yield ranks()
    yield streaming()
    yield memory()
    yield intervals()
    yield from queries()


def ranks() -> Comparison:
    """Both directions, from scores of which no two are equal."""
    order = torch.randperm(IMAGES * CAPTIONS, dtype=torch.int32)
    scores = (order + (0x3F800000 - len(order))).view(torch.float32).view(IMAGES, CAPTIONS)
    del order
    ids, owners = _ids()

    def ours() -> dict[str, float]:
        return cross_modal_recall(scores, ids, owners)

    # Once more than is counted: the loop keeps one thread busy, and the other has to wake up.
    seconds = interleave(
        {"awake": ours, "ours": ours, "theirs": lambda: argsort_ranks(scores.numpy())}, repeats=3
    )
    naive = recall_from_ranks(*map(torch.from_numpy, ranks_by_definition(scores.numpy())))
    return Comparison(
        name="ranks.matrix",
        work=f"`cross_modal_recall`, {SIZE} fp32 scores, both directions",
        against="NumPy `argsort` of every row and every column, then a search for the matches",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=20,
        difference=_difference(ours(), naive),
        floors={"bytes of the scores, read once": scores.nbytes / copy_rate()},
        note="Ours also finds scores that are not finite, and counts ties against the query; the "
        "difference is that to a loop over queries which does so too.",
    )


def streaming() -> Comparison:
    """From embeddings to recall, against the products alone."""
    gallery = _gallery()
    image, text = gallery.images.vector, gallery.texts.vector
    whole, block = torch.empty(IMAGES, CAPTIONS), torch.empty(CHUNK * CHUNK)

    def product() -> None:
        torch.mm(image, text.T, out=whole)

    def products() -> None:
        for columns in text.split(CHUNK):
            for rows in image.split(CHUNK):
                out = block[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=out)

    seconds = interleave(
        {
            "ours": lambda: evaluate(MATCHER, gallery, chunk_size=CHUNK),
            "whole": product,
            "tiles": products,
        },
        repeats=5,
    )
    faster = min(("whole", "tiles"), key=lambda way: statistics.median(seconds[way]))
    scores = score_matrix(MATCHER, gallery.images, gallery.texts, chunk_size=CHUNK)
    expected = cross_modal_recall(scores, gallery.image_ids, gallery.text_image_ids)
    return Comparison(
        name="ranks.streaming",
        work=f"`evaluate`, chunk_size={CHUNK}: recall in both directions from embeddings, "
        f"{SIZE}, width {DIM}, fp32",
        against="the bare matrix product, "
        + ("one `torch.mm`" if faster == "whole" else f"in tiles of {CHUNK} × {CHUNK}"),
        ours=seconds["ours"],
        theirs=seconds[faster],
        target=1.6,
        better="overhead",
        difference=_difference(evaluate(MATCHER, gallery, chunk_size=CHUNK), expected),
        floors={
            "operations of the product": 2 * IMAGES * CAPTIONS * DIM / gemm_rate(torch.float32),
            "bytes of the embeddings": (image.nbytes + text.nbytes) / copy_rate(),
        },
        note="The faster of one product and the same tiles; recall is compared with that of the "
        "whole matrix.",
    )


def memory() -> Comparison:
    """How far the peak memory of a fresh process grows."""
    return Comparison(
        name="ranks.streaming_memory",
        work=f"growth of the peak memory in `evaluate`, {SIZE}",
        against="`score_matrix`, then `cross_modal_recall`",
        ours=[_growth("evaluate")],
        theirs=[_growth("matrix")],
        unit="MB",
        note=f"At most (n + m) · chunk_size scores are kept, chunk_size={CHUNK}.",
    )


def intervals() -> Comparison:
    """1,000 resamples of the ranks of all queries."""
    ids, owners = _ids()
    # Half of the queries find their match first, as those of a trained model do.
    i2t, t2i = (
        (1 / torch.rand(count) - 1).long().clamp(max=most - 1)
        for count, most in ((IMAGES, CAPTIONS), (CAPTIONS, IMAGES))
    )
    ranks = QueryRanks(i2t, t2i, ids, owners)
    seconds = interleave(
        {
            "ours": lambda: bootstrap_recall(ranks, samples=SAMPLES),
            "theirs": lambda: resampled_recalls(i2t.numpy(), t2i.numpy(), SAMPLES, 0),
        },
        repeats=3,
    )
    return Comparison(
        name="ranks.bootstrap",
        work=f"`bootstrap_recall`, {SAMPLES:,} resamples of the ranks of {SIZE}",
        against="a loop over the resamples in NumPy",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        note="The draws of the two differ; tests compare with a loop over the same draws.",
    )


def queries() -> Iterator[Comparison]:
    """The file of all queries, beyond their ranks."""
    gallery = _gallery()

    def ranked(keep: int) -> list[QueryRanks]:
        return rank_queries(MATCHER, gallery, chunk_size=CHUNK, keep=keep)

    with tempfile.TemporaryDirectory() as folder:
        seconds = interleave(
            {
                "ours": lambda: _write_queries(folder, ranked(10)),
                "theirs": lambda: ranked(0),
            },
            repeats=3,
        )
    yield Comparison(
        name="ranks.queries",
        work=f"`rank_queries(keep=10)` and `write_queries`, {SIZE}: ranks, 10 best items and 10 "
        "hardest negatives of every query, with names and captions",
        against="`rank_queries` alone",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        better="overhead",
        note="The file may take 10 s more than the ranks.",
    )
    yield Comparison(
        name="ranks.queries_memory",
        work=f"growth of the peak memory for the same, {SIZE}",
        against="`evaluate`",
        ours=[_growth("queries")],
        theirs=[_growth("evaluate")],
        better="overhead",
        unit="MB",
        note="At most 1 GB is wanted.",
    )


def _write_queries(folder: str, folds: list[QueryRanks]) -> None:
    names = [f"COCO_val2014_{row:012d}.jpg" for row in range(IMAGES)]
    captions = [f"a caption of about the usual length, number {row}" for row in range(CAPTIONS)]
    write_queries(f"{folder}/queries.parquet", folds, names, captions)


def _ids() -> tuple[Tensor, Tensor]:
    ids = torch.arange(IMAGES)
    return ids, ids.repeat_interleave(CAPTIONS // IMAGES)


def _gallery() -> Gallery:
    torch.manual_seed(0)
    ids, owners = _ids()
    image = torch.randn(IMAGES, DIM)
    text = torch.randn(CAPTIONS, DIM).mul_(12)
    for part, own in zip(text.split(1000), owners.split(1000), strict=True):
        part += image[own]  # in parts: the peak is to be that of the evaluation
    F.normalize(image, out=image)
    F.normalize(text, out=text)
    return Gallery(
        Encoding(vector=image), Encoding(vector=text), ids, owners, torch.arange(CAPTIONS)
    )


def _difference(result: dict[str, float], expected: dict[str, float]) -> float:
    return max(abs(result[key] - expected[key]) for key in expected)


def _growth(way: str) -> float:
    """Megabytes by which the peak memory of a process grows that evaluates in one way."""
    command = [sys.executable, "-m", "benchmarks.bench_ranks", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_growth(way: str) -> None:
    gallery = _gallery()
    ids, owners, images, texts = torch.arange(2), torch.arange(2), gallery.images, gallery.texts
    evaluate(MATCHER, Gallery(images[:2], texts[:2], ids, owners, owners))  # loads what it needs
    before = peak_megabytes()
    if way == "evaluate":
        evaluate(MATCHER, gallery, chunk_size=CHUNK)
    elif way == "queries":
        with tempfile.TemporaryDirectory() as folder:
            _write_queries(folder, rank_queries(MATCHER, gallery, chunk_size=CHUNK, keep=10))
    else:
        scores = score_matrix(MATCHER, images, texts, chunk_size=CHUNK)
        cross_modal_recall(scores, gallery.image_ids, gallery.text_image_ids)
    print(peak_megabytes() - before)


if __name__ == "__main__":
    torch.set_num_threads(2)
    _print_growth(sys.argv[1])
