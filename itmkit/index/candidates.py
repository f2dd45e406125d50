"""Candidates of a search from a faiss index, whose recall was measured when it was built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError
from itmkit.extras import require_extra

LEAST_RECALL = 0.95  # of sentences; below it a build is refused
RECALL_AT = 10
LEAST_QUERIES = 50
MOST_QUERIES = 500  # that recall is measured with

_CRASHES = r"[A-Za-z]0+(?!\d)|HNSW0*1(?!\d)"  # in a factory string, as of faiss 1.15
_PER_HIT = 10  # candidates that are scored exactly for every hit that is wanted
_LEAST_CANDIDATES = 100
_TRAINED_WITH = 200_000  # vectors at most, evenly spread

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class FaissBuild:
    """How a faiss index was built, and what it finds.

    Args:
        factory: factory string of faiss.
        parameters: of its searches, such as ``"nprobe=8"``: the fastest that were good enough.
        text_recall: share of the ten best pictures of a sentence that are among its candidates,
            the mean over ``queries``.
        image_recall: the same of pictures of the index as queries, themselves left out.
        queries: the sentences.
        generation: of the state of the index that it belongs to.
        file: its name in the folder of the index.
    """

    factory: str
    parameters: str
    text_recall: float
    image_recall: float
    queries: list[str]
    generation: int
    file: str

    def __str__(self) -> str:
        settings = f" with {self.parameters}" if self.parameters else ""
        return (
            f"{self.factory}{settings} finds {self.text_recall:.1%} of the {RECALL_AT} best "
            f"pictures of a sentence and {self.image_recall:.1%} of those of a picture "
            f"({len(self.queries)} sentences)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As numbers, strings and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            TypeError: if entries are missing or unknown.
        """
        return cls(**content)


class FaissIndex:
    """A faiss index of unit vectors by their rows; similarity is the inner product.

    Args:
        index: of faiss.
    """

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, factory: str, count: int, tiles: Iterable[Tensor], sample: Tensor) -> Self:
        """Train it and add vectors.

        Args:
            factory: string of faiss.
            count: vectors in all.
            tiles: the vectors ``(m, D)``, in the order of the rows.
            sample: some of them, to train with.

        Raises:
            InputError: if the string is none, or asks for more than these vectors can give.
        """
        require_extra("faiss", "faiss-cpu>=1.9")
        import faiss

        if re.search(_CRASHES, factory):
            raise InputError(
                f"factory is {factory!r}, with a number that is too small; expected a factory "
                "string of faiss, such as 'IVF64,Flat'"
            )
        dim = sample.shape[1]
        try:
            index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
            index.train(_unit(sample))
            for tile in tiles:
                index.add(_unit(tile))
        except (RuntimeError, TypeError, MemoryError) as error:
            raise InputError(
                f"factory is {factory!r}, which faiss refuses for {count} vectors of {dim}: "
                f"{_reason(error)}; expected a factory string of faiss, such as 'IVF64,Flat'"
            ) from error
        return cls(index)

    @classmethod
    def read(cls, path: Path, shape: tuple[int, ...], parameters: str) -> Self:
        """Open one.

        Args:
            path: of the file.
            shape: ``(n, D)`` of its vectors.
            parameters: of its searches; see :meth:`use`.

        Raises:
            FileNotFoundError: if there is none.
            InputError: if it is cut short or of other vectors, or faiss is not installed.
        """
        require_extra("faiss", "faiss-cpu>=1.9")
        import faiss

        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a part of the index")
        again = "build it again, or remove faiss.json for exact searches"
        try:
            index = cls(faiss.read_index(str(path)))
            index.use(parameters)
        except RuntimeError as error:
            raise InputError(
                f"{path} is not readable, perhaps cut short: {_reason(error)}; {again}"
            ) from error
        found = (index.index.ntotal, index.index.d)
        if found != tuple(shape):
            raise InputError(f"{path} has vectors {found}; expected {tuple(shape)}: {again}")
        return index

    def write(self, file: Any) -> None:
        """Write it to an open file."""
        import faiss

        faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))

    def settings(self) -> Iterator[str]:
        """Parameters of searches, the fastest first; empty where it has none that matter."""
        import faiss

        space = faiss.ParameterSpace()
        space.initialize(self.index)
        ranges = space.parameter_ranges
        names = {ranges.at(place).name for place in range(ranges.size())}
        if "nprobe" in names:
            lists = faiss.extract_index_ivf(self.index).nlist
            for power in range((lists - 1).bit_length() + 1):
                yield f"nprobe={min(1 << power, lists)}"
        elif "efSearch" in names:
            yield from (f"efSearch={1 << power}" for power in range(6, 11))
        else:
            yield ""

    def use(self, parameters: str) -> None:
        """Search with these parameters from now on."""
        import faiss

        if parameters:
            faiss.ParameterSpace().set_index_parameters(self.index, parameters)

    def candidates(self, vectors: Tensor, wanted: int) -> list[Rows | None]:
        """Rows that may be among the ``wanted`` best for each vector ``(q, D)``, ascending.

        None for a vector with too few of them: then all rows are to be searched.
        """
        count = min(max(_PER_HIT * wanted, _LEAST_CANDIDATES), self.index.ntotal)
        _, found = self.index.search(_unit(vectors), count)
        return [np.sort(rows) if (rows >= 0).all() else None for rows in found]


def recall(found: Sequence[Rows | None], right: Sequence[Rows]) -> float:
    """Mean share of the best rows that are among the candidates.

    Args:
        found: candidates of every query; None, which is searched exactly at its cost, counts as
            nothing found.
        right: for every query, the rows that are good enough for its ``RECALL_AT`` best: more than
            these where scores are equal.

    Example:
        >>> recall([np.array([0, 2, 4]), None], [np.array([0, 1]), np.array([0, 1])])
        0.25
    """
    shares = []
    for own, best in zip(found, right, strict=True):
        hits = 0 if own is None else len(np.intersect1d(own, best))
        shares.append(min(hits / min(RECALL_AT, len(best)), 1.0))
    return float(np.mean(shares))


def check_sentences(sentences: Sequence[str]) -> list[str]:
    """The different ones of the sentences that recall is measured with, at most 500.

    Raises:
        InputError: if they are no list of strings, or too few.
    """
    if isinstance(sentences, str) or not all(isinstance(one, str) for one in sentences):
        raise InputError("queries is no list of strings; expected sentences")
    different = list(dict.fromkeys(one.strip() for one in sentences if one.strip()))
    if len(different) < LEAST_QUERIES:
        raise InputError(
            f"queries has {len(different)} different sentences; expected at least {LEAST_QUERIES}, "
            "to measure what a faiss index finds"
        )
    return [different[place] for place in spread(len(different), MOST_QUERIES)]


def training_rows(count: int) -> Rows:
    """Rows, evenly spread, that a faiss index of so many vectors is trained with."""
    return spread(count, _TRAINED_WITH)


def spread(count: int, most: int) -> Rows:
    """At most so many numbers below ``count``, evenly spread.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    kept = min(count, most)
    return np.arange(kept, dtype=np.int64) * count // max(kept, 1)


def _unit(vectors: Tensor) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = F.normalize(vectors.float(), dim=1).numpy()
    return unit


def _reason(error: Exception) -> str:
    """What faiss says without the place in its source."""
    return str(error).partition(": Error: ")[2] or str(error).rpartition(": ")[2]
