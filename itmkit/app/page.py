"""What the search page shows: results, pictures and maps. It knows nothing of HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, Literal

from PIL import Image

from itmkit.checks import InputError, check_count
from itmkit.data.captions import check_name
from itmkit.data.images import BadSampleError
from itmkit.data.photo import decode_photo, read_photo
from itmkit.data.pictures import MAX_PIXELS
from itmkit.extras import require_extra
from itmkit.index import Index
from itmkit.index.columns import OWN_COLUMNS
from itmkit.index.where import ConditionError, matching_rows
from itmkit.report.page import figure_webp, render, webp
from itmkit.retriever import Retriever
from itmkit.systems import Matcher

MOST_BYTES = 25_000_000  # of a picture that is sent
MOST_HITS = 500
NUMBERS = (12, 24, 48, 96, 192)  # of results, to choose from

#: of a picture: pixels of the longer side, quality of the WebP
_SIZES = {"small": (320, 72), "large": (1600, 85)}
_KEPT = 2000  # small pictures in memory, of about 10 KB

Size = Literal["small", "large"]


class RequestError(InputError):
    """What is wrong with a request: the only error whose text a browser is sent.

    The text names a picture of the index by its path in the folder, and no other path of this
    machine.
    """


class SearchPage:
    """The search page of an index: what it shows, as text, bytes and dictionaries.

    Pictures are known by their number, the row in ``index.items``; no file that is
    not in the index can be asked for. The model is used by one thread at a time.

    Args:
        index: that is searched; pictures are explained where its encoder is a
            :class:`itmkit.Retriever` of a model that can, and matplotlib is installed.
        name: of the index, for the title; where empty, that of its run or folder.
    """

    def __init__(self, index: Index, name: str = "") -> None:
        self.index = index
        folder = index.folder.resolve()  # that of a run is runs/NAME/index
        self.name = name or (folder.parent.name if folder.name == "index" else folder.stem)
        self._model = Lock()
        self._small = lru_cache(_KEPT)(self._encoded)

    @property
    def can_explain(self) -> bool:
        """Whether there are maps: the model has them, and matplotlib is installed."""
        encoder = self.index.encoder
        if not isinstance(encoder, Retriever) or type(encoder.model).explain is Matcher.explain:
            return False
        try:
            require_extra("report", "matplotlib>=3.9")
        except InputError:
            return False
        return True

    def html(self) -> str:
        """The page itself."""
        index = self.index
        own = [name for name in index.items.column_names if name not in OWN_COLUMNS]
        return render(
            "app.html.jinja",
            package="itmkit.app",
            name=self.name,
            count=len(index),
            system=type(index.encoder.model).__name__,
            numbers=[number for number in NUMBERS if number <= MOST_HITS],
            columns=own,
            can_explain=self.can_explain,
            most_bytes=MOST_BYTES,
            takes_pictures=index.has_vectors,
            folder_is_gone=not index.root.is_dir(),
        )

    def search(
        self,
        words: str = "",
        k: int = 24,
        *,
        where: str = "",
        picture: bytes | None = None,
        like: int | None = None,
    ) -> dict[str, Any]:
        """The best pictures; without words and a picture, the first ones by path.

        Args:
            words: a sentence, or nothing.
            k: hits wanted, at most ``MOST_HITS``.
            where: condition on the columns, or nothing.
            picture: content of a file.
            like: number of a picture of the index, in place of ``picture``.

        Returns:
            ``hits``, dictionaries of ``item`` (number), ``name`` (path in the folder), ``score``
            and ``probability`` (None where there is none) and ``columns``; ``note``, such as that
            nothing matches; ``seconds``.

        Raises:
            RequestError: a number is out of its range, ``where`` is no condition, a picture cannot
                be read, or the model compares no pictures.
            InputError: the index is damaged, or the model gives no numbers.
        """
        with _of_the_request(InputError):
            check_count(k=k)
        if k > MOST_HITS:
            raise RequestError(f"k is {k}; expected at most {MOST_HITS}")
        start = perf_counter()
        sentence, condition = words.strip() or None, where.strip() or None
        image = None if like is None else self._photo(like)
        if picture is not None:
            with _of_the_request(BadSampleError):
                image = decode_photo(
                    BytesIO(picture), "picture", side=self._side, max_pixels=MAX_PIXELS
                )
        if image is not None:
            with _of_the_request(InputError):
                self.index.exact.check_vectors()
        note = ""
        if sentence is None and image is None:
            with _of_the_request(ConditionError):
                found = self._listed(k, condition)
        else:
            with self._model, _of_the_request(ConditionError):
                hits = self.index.search(sentence, k, image=image, where=condition)
            note = self.index.verdict(hits) if image is None else ""
            found = [self._entry(hit.row, hit.score, hit.probability) for hit in hits]
        return {"hits": found, "note": note, "seconds": perf_counter() - start}

    def file(self, item: int) -> Path:
        """The file of a picture of the index.

        Raises:
            RequestError: there is no such picture, or its path leads out of the folder.
        """
        if not 0 <= item < len(self.index):
            raise RequestError(f"item is {item}; expected a number below {len(self.index)}")
        name: str = self.index.items["path"][item].as_py()
        with _of_the_request(InputError):
            check_name(name, "the index")
        return self.index.root / name

    @property
    def _side(self) -> int:
        return self.index.encoder.preprocessing.scaled_side

    def _photo(self, item: int) -> Image.Image:
        """A picture of the index, for the model."""
        path = self.file(item)
        name = path.relative_to(self.index.root)
        if not path.is_file():
            raise RequestError(f"{name} is no longer in the folder of the pictures")
        try:
            return read_photo(path, side=self._side, max_pixels=MAX_PIXELS)
        except BadSampleError as error:
            raise RequestError(f"{name} cannot be read; expected a picture") from error

    def picture(self, item: int, size: Size = "small") -> bytes | None:
        """A picture of the index as WebP; None where its file cannot be read.

        Raises:
            RequestError: as :meth:`file`.
        """
        with suppress(FileNotFoundError):
            return self._small(item) if size == "small" else self._encoded(item, size)
        return None

    def explanation(self, item: int, words: str) -> bytes:
        """Maps of the words over a picture of the index, as WebP; see ``Retriever.explain``.

        Raises:
            RequestError: as :meth:`file`; the picture cannot be read, the model cannot explain, or
                matplotlib is not installed.
        """
        encoder, photo = self.index.encoder, self._photo(item)
        if not isinstance(encoder, Retriever):
            raise RequestError(f"model is {type(encoder).__name__}; expected a Retriever")
        with _of_the_request(InputError):
            require_extra("report", "matplotlib>=3.9")
        from matplotlib.figure import Figure

        figure = Figure(facecolor="white")
        with self._model:
            encoder.explain(photo, words, figure=figure)
        return figure_webp(figure, dpi=100, quality=75)

    def _encoded(self, item: int, size: Size = "small") -> bytes:
        side, quality = _SIZES[size]
        content = webp(self.file(item), side=side, quality=quality)
        if content is None:  # an error, so that it is not kept: the folder may come back
            raise FileNotFoundError(self.file(item))
        return content

    def _listed(self, k: int, where: str | None) -> list[dict[str, Any]]:
        items = self.index.items
        rows: Iterable[int] = range(min(k, len(items)))
        if where is not None:
            rows = matching_rows(items, where)[:k].tolist()
        return [self._entry(row) for row in rows]

    def _entry(
        self, row: int, score: float | None = None, probability: float | None = None
    ) -> dict[str, Any]:
        columns = self.index.items.slice(row, 1).to_pylist()[0]
        name = columns["path"]
        own = {key: _plain(v) for key, v in columns.items() if key not in OWN_COLUMNS}
        return {
            "item": row,
            "name": name,
            "score": score,
            "probability": probability,
            "columns": {key: value for key, value in own.items() if value is not None},
        }


@contextmanager
def _of_the_request(kind: type[InputError]) -> Iterator[None]:
    """Within it, errors of a kind say what is wrong with the request, and name no file."""
    try:
        yield
    except kind as error:
        raise RequestError(str(error)) from error


def _plain(value: Any) -> Any:
    """A value that JSON has; any other as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
