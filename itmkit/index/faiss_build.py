"""The faiss index of an index, built for the recall that is measured against exact search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.chunks import chunks, evenly_spaced
from itmkit.extras import require_extra
from itmkit.files import atomic_write, user_path
from itmkit.index import store
from itmkit.index.candidates import FaissIndex
from itmkit.index.encoder import QueryEncoder
from itmkit.index.exact_scores import ExactScores, Rows
from itmkit.retrieval import Encoding

LEAST_RECALL = 0.95  # of sentences; below it a build is refused
RECALL_AT = 10
LEAST_QUERIES = 50
MOST_QUERIES = 500  # that recall is measured with

_TRAINED_WITH = 200_000  # vectors at most, evenly spread
_QUERIES = 32  # whose scores are kept at a time


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


class FaissSearch:
    """The faiss index that searches of an index use, where there is one of its state.

    Args:
        stored: the index.
    """

    def __init__(self, stored: store.Stored) -> None:
        self._stored = stored
        self._generation = int(stored.manifest["generation"])
        self._last = stored_build(stored.folder)  # of whatever state
        self._opened: FaissIndex | None = None

    @property
    def build(self) -> FaissBuild | None:
        """How the one that searches use was built; None where they are exact."""
        return None if self._last is None or self.is_old else self._last

    @property
    def is_old(self) -> bool:
        """Whether the one that is there is of another state."""
        return self._last is not None and self._last.generation != self._generation

    def replace(
        self, exact: ExactScores, factory: str | None, queries: Sequence[str] | None
    ) -> FaissBuild:
        """Build another one; see :meth:`itmkit.index.Index.build_faiss`."""
        if self._last is not None:
            factory = self._last.factory if factory is None else factory
            queries = self._last.queries if queries is None else queries
        if not isinstance(factory, str):
            raise InputError(f"factory is {factory!r}; expected a string such as 'IVF64,Flat'")
        check_faiss_model(exact.encoder)
        exact.check_vectors()
        sentences = check_sentences(queries or ())
        folder = self._stored.folder
        with store.writing(folder):
            if store.read(folder).manifest["generation"] != self._generation:
                raise InputError(f"{folder} has changed; expected to be opened again")
            file_name = store.new_faiss_file(folder)
            index, build = measured(exact, factory, sentences, self._generation, file_name)
            with atomic_write(folder / build.file) as file:
                index.write(file)
            store.write_faiss(folder, build.to_dict())
        self._last, self._opened = build, index
        return build

    def candidates(self, queries: Encoding, wanted: int) -> list[Rows | None]:
        """Rows that it finds for every query; None where all are to be searched."""
        index = self._index()
        if index is None or "vector" not in queries.items():
            return [None] * len(queries)
        return index.candidates(queries.vector.cpu(), wanted)

    def _index(self) -> FaissIndex | None:
        """The faiss index, read when it is first needed."""
        build = self.build
        if build is None or self._opened is not None:
            return self._opened
        folder, shape = self._stored.folder, self._stored.fields["vector"].shape
        try:
            self._opened = FaissIndex.read(folder / build.file, shape, build.parameters)
        except FileNotFoundError:
            now = stored_build(folder)
            if now is not None and now.file == build.file:
                raise
            self._last = None  # another process has built another one
        return self._opened


def measured(
    exact: ExactScores, factory: str, sentences: list[str], generation: int, file: str
) -> tuple[FaissIndex, FaissBuild]:
    """A faiss index with the fastest good parameters, and what it finds.

    Args:
        exact: the scores that it is compared with.
        factory: string of faiss.
        sentences: that recall is measured with.
        generation: see :class:`FaissBuild`.
        file: see :class:`FaissBuild`.

    Raises:
        InputError: if faiss refuses the string, the sentences have no vectors like the pictures',
            or less than 0.95 of the pictures that exact search finds for them would be found.
    """
    count, shape = exact.count, exact.fields["vector"].shape
    texts = Encoding.cat(
        [exact.encoder.encode_texts(sentences[part]) for part in chunks(len(sentences), 256)]
    )
    if "vector" not in texts.items() or texts.vector.shape[1] != shape[1]:
        raise InputError("sentences have no vector of the size of the pictures'; expected one")
    places = np.array(evenly_spaced(count, len(sentences)), np.int64)
    pictures = Encoding(vector=exact.vectors(places))
    tiles = (tile["vector"] for _, tile in exact.tiles(("vector",)))
    sample = np.array(evenly_spaced(count, _TRAINED_WITH), np.int64)
    index = FaissIndex.build(factory, count, tiles, exact.vectors(sample))
    right: list[Rows] = []
    alike: list[Rows] = []
    for part in chunks(len(texts), _QUERIES):
        right += map(_good_enough, exact.of_texts(texts[part]))
    for part in chunks(len(pictures) if count > 1 else 0, _QUERIES):
        scores = exact.of_pictures(pictures[part])
        scores[range(len(scores)), places[part]] = -torch.inf  # itself
        alike += map(_good_enough, scores)
    of_text = of_image = 0.0
    used = ""
    for parameters in index.settings():
        index.use(used := parameters)
        of_text = recall(index.candidates(texts.vector.cpu(), RECALL_AT), right)
        found = index.candidates(exact.picture_queries(pictures).vector, RECALL_AT + 1)
        of_image = recall(found, alike) if alike else 1.0
        if min(of_text, of_image) >= LEAST_RECALL:
            break
    build = FaissBuild(factory, used, of_text, of_image, sentences, generation, file)
    if of_text < LEAST_RECALL:
        raise InputError(f"factory: {build}; expected at least {LEAST_RECALL:.0%} of the first")
    return index, build


def _good_enough(scores: Tensor) -> Rows:
    """The rows with the ``RECALL_AT`` best scores, and those of equal ones."""
    finite = int(scores.isfinite().sum())
    worst = scores.topk(min(RECALL_AT, finite), sorted=False).values.min()
    rows: Rows = (scores >= worst).nonzero()[:, 0].numpy()
    return rows


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
    return [different[place] for place in evenly_spaced(len(different), MOST_QUERIES)]


def faiss_sentences(
    encoder: QueryEncoder,
    folder: str | Path,
    factory: str | None,
    queries: Sequence[str] | None,
    otherwise: Callable[[], Sequence[str]],
) -> list[str]:
    """The sentences that :meth:`Index.build_faiss` will take, before there is an index.

    Args:
        encoder: whose model is checked.
        folder: of the index, if it is there.
        factory: that given; None: that of the faiss index that is there.
        queries: those given; None: those of the faiss index that is there.
        otherwise: gives them where there is none.

    Raises:
        InputError: if the model cannot have a faiss index, faiss is not installed, or the sentences
            are too few.
    """
    check_faiss_model(encoder)
    last = stored_build(user_path(folder))
    if factory is None and last is None:
        raise InputError("factory is None, and queries are given; expected both")
    if queries is None:
        queries = otherwise() if last is None else last.queries
    return check_sentences(queries)


def check_faiss_model(encoder: QueryEncoder) -> None:
    """Raise unless the model compares one vector of a picture with one of a sentence.

    Raises:
        InputError: if it does not, or faiss is not installed.
    """
    require_extra("faiss", "faiss-cpu>=1.9")
    model = encoder.model
    if model.score_fields != ("vector",):
        raise InputError(
            f"factory is given, and {type(model).__name__} compares more than one vector of a "
            "picture; expected a model that a faiss index can serve, or no factory"
        )


def stored_build(folder: Path) -> FaissBuild | None:
    """The build that the folder of an index has last seen, of whatever state; None: none.

    Raises:
        InputError: if its file has wrong or missing entries.
    """
    return store.read_faiss(folder, FaissBuild.from_dict)
