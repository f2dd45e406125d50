"""Search of an index on disk: against the bare products, and with candidates of faiss."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Comparison, Skipped, interleave
from itmkit.data import Preprocessing
from itmkit.index import Index, store
from itmkit.retrieval import Encoding
from itmkit.systems.matcher import cosine_scores

DIM, BLOCK = 512, 16_384


class Cosine(torch.nn.Module):
    """A matcher whose score is the product of unit vectors."""

    device = torch.device("cpu")
    rerank_top_k, rerank_weight = 0, 0.0
    score_fields = ("vector",)

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """All products."""
        return cosine_scores(images.vector, texts.vector)


class Queries:
    """An encoder whose sentences are numbers of ready vectors."""

    fingerprint = "none"
    preprocessing = Preprocessing(size=224)

    def __init__(self, vectors: Tensor) -> None:
        self.model: Any = Cosine()
        self.vectors = vectors

    def encode_texts(self, texts: list[str]) -> Encoding:
        """The vectors of these numbers."""
        return Encoding(vector=self.vectors[[int(text) for text in texts]])

    def encode_images(self, images: list[Any]) -> Encoding:
        """No pictures are searched for here."""
        raise NotImplementedError


def comparisons() -> Iterator[Comparison | Skipped]:
    """One query in 100,000 pictures, 32 in a million, and the memory of these; with faiss."""
    with tempfile.TemporaryDirectory() as folder:
        yield one_query(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from many_queries(Path(folder))
    for factory in ("IVF1024,Flat", "HNSW32"):
        with tempfile.TemporaryDirectory() as folder:
            yield candidates(Path(folder), factory)


def make_index(folder: Path, blocks: Sequence[Tensor], dtype: str, queries: Tensor) -> Index:
    """Vectors as an index, to be searched by the numbers of queries."""
    count = sum(map(len, blocks))
    arrays = [block.numpy().astype(dtype) for block in blocks]
    places = np.stack([np.arange(count) // BLOCK, np.arange(count) % BLOCK], 1)
    numbers = pa.array(range(count), pa.int64())
    names = pa.array([f"{row}.jpg" for row in range(count)])
    items = pa.table({"path": names, "size": numbers, "mtime": numbers, "hash": names})
    manifest = {"fingerprint": "none", "root": "/", "skipped": []}
    store.write(folder, manifest, items, {"vector": arrays}, places, generation=1)
    return Index(folder, Queries(queries))


def random_units(count: int) -> list[Tensor]:
    """Random unit vectors, block by block."""
    sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    return [F.normalize(torch.randn(size, DIM), dim=1) for size in sizes]


def one_query(folder: Path) -> Comparison:
    """100,000 × 512 fp32."""
    index = make_index(folder, random_units(100_000), "float32", *random_units(1))
    vectors = torch.from_numpy(np.load(folder / "vector-0001.npy"))
    query = index.encoder.encode_texts(["0"]).vector[0]

    def theirs() -> Tensor:
        return torch.mv(vectors, query).topk(10).indices

    found = [int(hit.path.stem) for hit in index.search("0")]
    seconds = interleave({"ours": lambda: index.search("0"), "theirs": theirs}, repeats=15)
    return Comparison(
        name="search.one",
        work="`Index.search`, one query in 100,000 × 512 fp32, memory-mapped and warm, 10 hits",
        against="`torch.mv` of a tensor and `topk`",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=1.3,
        better="overhead",
        difference=float(found != theirs().tolist()),
    )


def many_queries(folder: Path) -> Iterator[Comparison]:
    """1,000,000 × 512 fp16."""
    index = make_index(folder, random_units(1_000_000), "float16", *random_units(32))
    vectors = np.load(folder / "vector-0001.npy", mmap_mode="c")
    names = [str(row) for row in range(32)]
    queries = index.encoder.encode_texts(names).vector

    def theirs() -> Tensor:
        out = torch.empty(len(queries), len(vectors))
        for start in range(0, len(vectors), BLOCK):
            tile = torch.from_numpy(vectors[start : start + BLOCK]).float()
            out[:, start : start + len(tile)] = torch.mm(queries, tile.T)
        return out

    def ours() -> list[list[int]]:
        return [[int(hit.path.stem) for hit in hits] for hits in index.search_many(names)]

    agree = ours() == theirs().topk(10).indices.tolist()
    seconds = interleave({"ours": ours, "theirs": theirs}, repeats=5)
    yield Comparison(
        name="search.many",
        work="`Index.search_many`, 32 queries in 1,000,000 × 512 fp16, memory-mapped and warm",
        against="the same tiles cast to fp32 and `torch.mm`, without finding the best",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=1.5,
        better="overhead",
        difference=float(not agree),
    )
    with sampled_anonymous() as grown:
        ours()
    yield Comparison(
        name="search.memory",
        work="the same search: most anonymous memory above what the process had",
        against="the limit of 300 MB",
        ours=grown,
        theirs=[300.0],
        target=1,
        better="overhead",
        unit="MB",
    )


def candidates(folder: Path, factory: str) -> Comparison | Skipped:
    """200,000 × 128 in 5,000 clusters; sentences lie apart from the pictures, as those of CLIP."""
    name, work = f"search.{factory.partition(',')[0].lower()}", f"`Index.search` with `{factory}`"
    if find_spec("faiss") is None:
        return Skipped(name, work, "faiss is not installed")
    generator = torch.Generator().manual_seed(0)
    centres, apart = _normal(5_000, generator), _normal(1, generator)

    def near(count: int) -> Tensor:
        rows = torch.randint(len(centres), (count,), generator=generator)
        return centres[rows] + 0.5 * _normal(count, generator)

    blocks = list(F.normalize(near(200_000), dim=1).split(BLOCK))
    sentences = F.normalize(near(500) + apart, dim=1)
    index = make_index(folder, blocks, "float32", sentences)
    texts = [str(row) for row in range(len(sentences))]
    exact = Index(folder, index.encoder)
    start = time.perf_counter()
    index.build_faiss(factory, texts)
    took = time.perf_counter() - start
    assert index.faiss is not None
    seconds = interleave(
        {way: partial(one.search, "0") for way, one in (("ours", index), ("theirs", exact))},
        repeats=15,
    )
    return Comparison(
        name=name,
        work=f"{work}, one query in 200,000 × 128 fp32 in 5,000 clusters, 10 hits",
        against="the same search without faiss",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        note=f"{index.faiss}; built and measured in {took:.0f} s.",
    )


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(count, 128, generator=generator), dim=1)


@contextmanager
def sampled_anonymous() -> Iterator[list[float]]:
    """Gives a list that then holds by how many MB the anonymous memory grew at most."""
    grown: list[float] = []
    done = threading.Event()
    before, most = anonymous_megabytes(), [0.0]

    def look() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], anonymous_megabytes() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()
        grown.append(most[0])


def anonymous_megabytes() -> float:
    """Memory of this process that no file backs (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
