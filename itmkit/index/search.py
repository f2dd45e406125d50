"""Search an index by words, by a picture, or by both: exactly, or among candidates of faiss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, check_count, check_positive, check_share, type_of
from itmkit.chunks import chunks
from itmkit.files import user_path
from itmkit.index import store
from itmkit.index.calibration import HITS, Calibration
from itmkit.index.columns import OWN_COLUMNS
from itmkit.index.encoder import QueryEncoder
from itmkit.index.exact_scores import ExactScores, Rows, best_places
from itmkit.index.faiss_build import LEAST_RECALL, FaissBuild, FaissSearch
from itmkit.index.update import Update
from itmkit.index.where import matching_rows
from itmkit.retrieval import Encoding, best_images
from itmkit.retrieval.blend import Scale
from itmkit.retrieval.score import second_stage

if TYPE_CHECKING:
    import pyarrow as pa

_QUERIES = 32  # whose scores are kept at a time


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Args:
        path: of the file.
        score: of the model, higher is better; of a search by words and a picture, the mean of the
            two scores, each in standard deviations from the mean of the pictures that are
            searched: those that ``where`` leaves.
        probability: an estimate in [0, 1] that the hit is right, by the scores of the first stage;
            None without calibration.
        columns: the user's own columns.
        row: of the picture in ``Index.items``, which changes when the index does; equal hits
            may have different ones.
    """

    path: Path
    score: float
    probability: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    row: int = field(default=-1, compare=False)


class Index:
    """An index that is open for searching.

    Args:
        folder: of the index, which :func:`itmkit.index.build_index` made.
        encoder: makes the encodings of queries, such as an :class:`itmkit.Retriever`: with the
            model that the index was made with.

    Attributes:
        update: what :meth:`itmkit.Retriever.index` did to it; None where it was only opened.
        items: a ``pyarrow.Table`` with a row a picture: ``path``, ``size``, ``mtime``, ``hash`` and
            the user's own columns.
        faiss: how the faiss index that searches use was built, and what it finds; None where every
            search is exact: without one, or with one of an older state of the index.

    Raises:
        FileNotFoundError: if there is no index, or one of its files is missing.
        InputError: if it is cut short, of a newer version, or of another model.
    """

    def __init__(self, folder: str | Path, encoder: QueryEncoder) -> None:
        self.folder = user_path(folder)
        self.update: Update | None = None
        self.encoder = encoder
        self._stored = store.read(self.folder)
        found = self._stored.manifest["fingerprint"]
        if found != encoder.fingerprint:
            raise InputError(
                f"{self.folder} was made with another model ({found}); expected that of this "
                f"search ({encoder.fingerprint}): index the pictures again, into a new folder"
            )
        self.items: pa.Table = self._stored.items
        if not self.root.is_dir():
            warnings.warn(
                f"{self.root}, the pictures of {self.folder}, is not there; after they have moved, "
                "index them again into the same folder: nothing is encoded twice",
                stacklevel=2,
            )
        self.calibration = store.read_calibration(self.folder, Calibration.from_dict)
        self.exact = ExactScores(self._stored, encoder)
        self._faiss = FaissSearch(self._stored)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def root(self) -> Path:
        """Folder of the pictures."""
        return Path(self._stored.manifest["root"])

    @property
    def has_vectors(self) -> bool:
        """Whether a picture has one vector, so that it can be compared with other pictures."""
        return "vector" in self._stored.fields

    @property
    def skipped(self) -> dict[str, str]:
        """Pictures that could not be read, and why."""
        return {one["path"]: one["reason"] for one in self._stored.manifest["skipped"]}

    def calibrate(self, calibration: Calibration) -> None:
        """Let hits of words have probabilities from now on, also after the index has changed.

        Raises:
            InputError: if it is no :class:`Calibration`.
        """
        if not isinstance(calibration, Calibration):
            raise InputError(f"calibration is {type_of(calibration)}; expected a Calibration")
        store.write_calibration(self.folder, calibration.to_dict())
        self.calibration = calibration

    @property
    def faiss(self) -> FaissBuild | None:
        """How the faiss index was built; None where searches are exact."""
        return self._faiss.build

    def build_faiss(self, factory: str | None = None, queries: Sequence[str] | None = None) -> None:
        """Find candidates with faiss from now on, which are then scored as before.

        An approximation: recall is measured here against exact search, of sentences and of pictures
        as queries, for the fastest parameters of the search that reach 0.95 of both.
        Needs ``itmkit[faiss]``.

        Args:
            factory: string of ``faiss.index_factory``, such as ``"IVF64,Flat"``; None: that of the
                faiss index that was built before.
            queries: 50 or more different sentences as people would type them, of which up to 500
                are taken; None: those of the faiss index that was built before.

        Raises:
            InputError: if faiss is not installed, or refuses the string; the model compares more
                than one vector; the sentences are too few; less than 0.95 of the pictures that
                exact search finds for them would be found. The index is then as it was.
        """
        build = self._faiss.replace(self.exact, factory, queries)
        if build.image_recall < LEAST_RECALL:
            warnings.warn(f"pictures as queries: {build}", stacklevel=2)

    def renew_faiss(self) -> None:
        """Build the faiss index again, if there is one of an older state of the index.

        Where that is refused, a warning says why, and searches are exact.
        """
        if self._faiss.is_old:
            try:
                self.build_faiss()
            except InputError as error:
                warnings.warn(f"searches are exact: {error}", stacklevel=2)

    def search(
        self,
        query: str | None = None,
        k: int = 10,
        *,
        image: Any = None,
        where: str | None = None,
        top_k: int | None = None,
        weight: float | None = None,
    ) -> list[Hit]:
        """The best pictures for words, a picture, or both; of equal scores the first by path.

        Args:
            query: a sentence.
            k: hits wanted; all pictures at most.
            image: a path, PIL image or array: pictures like this one.
            where: SQL condition on the columns, such as ``"year > 2019"``; the others are left out.
            top_k: best pictures that the model's second stage puts in order, where the query is
                words alone; None: ``model.rerank_top_k``.
            weight: share of the second stage, as there; None: ``model.rerank_weight``.

        Raises:
            InputError: if the query is empty, a picture cannot be read or compared, ``where`` is no
                condition, or a number is out of its range.
        """
        if query is None and image is None:
            raise InputError("query and image are both None; expected one of them")
        if query is not None and image is None:
            return self.search_many([query], k, where=where, top_k=top_k, weight=weight)[0]
        for name, value in {"top_k": top_k, "weight": weight}.items():
            if value is not None:
                raise InputError(
                    f"{name} is {value} with an image; expected None: a second stage takes words"
                )
        check_count(k=k)
        rows = None if where is None else matching_rows(self.items, where)
        own = self.encoder.encode_images([image])
        if rows is None and query is None:
            queries = self.exact.picture_queries(own)
            rows = self._faiss.candidates(queries, k + 1)[0]  # it may be one of them itself
        scores = self.exact.of_pictures(own, rows)[0]
        if query is not None:
            words = self.exact.of_texts(self._encoded([query]), rows)[0]
            scores = (Scale.of(scores).standardise(scores) + Scale.of(words).standardise(words)) / 2
        values, found = self._best(scores, rows, k)
        return self._hits(values, found)

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        top_k: int | None = None,
        weight: float | None = None,
    ) -> list[list[Hit]]:
        """The best pictures for each of several sentences; see :meth:`search`."""
        check_count(k=k)
        if isinstance(queries, str):
            raise InputError(f"queries is {queries[:40]!r}; expected a list of sentences")
        rows = None if where is None else matching_rows(self.items, where)
        if self.calibration is not None:
            self._check_gallery_size(self.calibration.gallery_size)
        top_k, weight, _ = second_stage(self.encoder.model, top_k, weight)
        hits = []
        for part in chunks(len(queries), _QUERIES):
            texts = self._encoded(queries[part])
            wanted = max(k, HITS, top_k)
            scored = self._scored_texts(texts, rows, wanted)
            for own, (scores, places) in enumerate(scored):
                values, found = self._best(scores, places, wanted)
                chances = self.calibration.probabilities(values) if self.calibration else None
                if top_k and len(found):
                    values, order = self._reranked(texts[own], found, top_k, weight)
                    found = found[order]
                    chances = None if chances is None else chances[order]
                hits.append(self._hits(values[:k], found[:k], chances))
        return hits

    def verdict(self, hits: Sequence[Hit]) -> str:
        """That nothing matches, where the probabilities of all hits say so; else empty."""
        chances = [hit.probability for hit in hits if hit.probability is not None]
        if self.calibration is None or len(chances) < len(hits):
            return ""
        return self.calibration.verdict(max(chances, default=0.0))

    def near_duplicates(self, threshold: float = 0.98) -> list[tuple[str, str, float]]:
        """Pairs of pictures whose vectors are nearly the same, the closest first.

        Every picture is compared with every other: n × n products.

        Args:
            threshold: smallest cosine, in (0, 1].

        Returns:
            Two paths and their cosine.

        Raises:
            InputError: if the threshold is out of its range, or the model has no vectors.
        """
        check_positive(threshold=threshold)
        check_share(threshold=threshold)
        paths = self.items["path"].to_pylist()
        pairs = [(paths[a], paths[b], cosine) for a, b, cosine in self.exact.close_pairs(threshold)]
        return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))

    def _encoded(self, queries: Sequence[str]) -> Encoding:
        for query in queries:
            if not isinstance(query, str):
                raise InputError(f"query is {type_of(query)}; expected a sentence")
            if not query.strip():
                raise InputError(f"query is {query!r}; expected a sentence")
        return self.encoder.encode_texts(list(queries))

    def _scored_texts(
        self, texts: Encoding, rows: Rows | None, wanted: int
    ) -> Iterator[tuple[Tensor, Rows | None]]:
        """Scores of each sentence and the rows that they are of; None for all rows."""
        found = self._faiss.candidates(texts, wanted) if rows is None else [None] * len(texts)
        exact = [own for own, places in enumerate(found) if places is None]
        whole = iter(self.exact.of_texts(texts[exact], rows) if exact else ())
        for own, places in enumerate(found):
            if places is None:
                yield next(whole), rows
            else:
                yield self.exact.of_texts(texts[own], places)[0], places

    def _best(self, scores: Tensor, rows: Rows | None, k: int) -> tuple[Tensor, Tensor]:
        values, places = best_places(scores, k)
        return values, places if rows is None else torch.from_numpy(rows)[places]

    def _reranked(
        self, text: Encoding, found: Tensor, top_k: int, weight: float | None
    ) -> tuple[Tensor, Tensor]:
        """Scores of both stages, best first, and in this order the places of what was found."""
        scores, order = best_images(
            self.encoder.model,
            text,
            self.exact.encoding(found.numpy()),
            len(found),
            top_k=top_k,
            weight=weight,
        )
        return scores[0], order[0]

    def _check_gallery_size(self, size: int) -> None:
        if len(self) > 3 * size:
            warnings.warn(
                f"the index has {len(self)} pictures, and its probabilities were learnt with "
                f"{size} images: they may be too high",
                stacklevel=3,
            )

    def _hits(self, scores: Tensor, rows: Tensor, probabilities: Tensor | None = None) -> list[Hit]:
        own = _taken(self.items, rows.numpy())
        columns = own.drop_columns(list(OWN_COLUMNS)).to_pylist() or [{}] * len(own)
        chances = [None] * len(own) if probabilities is None else probabilities.tolist()[: len(own)]
        paths = own["path"].to_pylist()
        parts = zip(paths, scores.tolist(), chances, columns, rows.tolist(), strict=True)
        return [Hit(self.root / path, *rest) for path, *rest in parts]


def _taken(items: pa.Table, rows: Rows) -> pa.Table:
    """Rows of a table; pyarrow imports pandas, for most of a second, to take those of an array."""
    import pyarrow as pa

    found = np.ascontiguousarray(rows, np.int64)
    indices = pa.Array.from_buffers(pa.int64(), len(found), [None, pa.py_buffer(found)])
    return items.take(indices)


def stored_model(folder: Path) -> str:
    """Name or path of the model that an index was made with.

    Raises:
        InputError: if the index does not know it.
    """
    name = store.read(folder).manifest.get("model")
    if name is None:
        raise InputError(f"{folder} does not know its model's name; expected --model")
    return str(name)
