"""Candidates of a search, from an index of faiss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError
from itmkit.extras import require_extra
from itmkit.index.exact_scores import Rows

_CRASHES = r"[A-Za-z]0+(?!\d)|HNSW0*1(?!\d)"  # in a factory string, as of faiss 1.15
_PER_HIT = 10  # candidates that are scored exactly for every hit that is wanted
_LEAST_CANDIDATES = 100


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


def _unit(vectors: Tensor) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = F.normalize(vectors.float(), dim=1).numpy()
    return unit


def _reason(error: Exception) -> str:
    """What faiss says without the place in its source."""
    return str(error).partition(": Error: ")[2] or str(error).rpartition(": ")[2]
