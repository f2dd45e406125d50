"""``queries.parquet``: rank, best items and hardest negatives of every query of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, check_count
from itmkit.files import atomic_write, user_path
from itmkit.metrics import BestItems, QueryRanks
from itmkit.metrics.query_ranks import as_folds

if TYPE_CHECKING:
    import pyarrow as pa

FILE_NAME = "queries.parquet"
ENSEMBLE_FILE = "ensemble.yaml"  # beside it, where it is of several runs
DIRECTIONS = ("i2t", "t2i")

_KEY = b"itmkit"
_NUMBERS = ("fold", "rank", "id", "image_id")
_TEXTS = ("direction", "image", "caption")


def write_queries(
    path: str | Path,
    folds: QueryRanks | Sequence[QueryRanks],
    names: Sequence[str],
    captions: Sequence[str],
    *,
    caption_images: Tensor | None = None,
    keep: int = 10,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a row a query: its rank, its best items and its hardest negatives.

    The columns: ``fold`` from 1; ``direction``, ``i2t`` (an image searches captions) or ``t2i``;
    ``id`` of the query, the row of the image or caption in its dataset; ``image``, the file name
    of the image, or of that of the caption, and ``image_id``, its row; ``caption``, null for an
    image; ``rank`` from 1, the number of wrong items in front of the best match or tied with it,
    plus 1; ``score`` of the best match; ``best`` and ``negatives``, lists of ``id``, ``image``,
    ``caption``, ``score`` and ``match``, best first.

    Args:
        path: the file.
        folds: of a gallery or of each fold, as :func:`itmkit.retrieval.rank_queries` gives them
            with ``keep``.
        names: file name of each image, by its id.
        captions: sentence of each caption, by its id.
        caption_images: the image of each caption; None: the captions of the folds, all of which
            are queries, know theirs.
        keep: at most so many best items and so many negatives of each query.
        about: what was evaluated; plain data, kept in the metadata of the file.

    Raises:
        InputError: no folds, ranks without best items, or fewer names or captions than there are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_count(keep=keep)
    folds = as_folds(folds=folds)
    texts = pa.array(captions, pa.string()) if captions else pa.nulls(0, pa.string())
    images = pa.array(names, pa.string())
    tables = []
    for number, fold in enumerate(folds, 1):
        if fold.i2t_best is None or fold.t2i_best is None or fold.text_ids is None:
            raise InputError("folds has no best items; expected those of rank_queries(keep=…)")
        assert fold.image_ids is not None
        assert fold.text_image_ids is not None
        _check_known("names", names, fold.image_ids, fold.t2i_best.items)
        _check_known("captions", captions, fold.text_ids, fold.i2t_best.items)
        owners = np.zeros(len(captions), np.int64)
        if caption_images is not None:
            owners[:] = caption_images.cpu().numpy()
        owners[fold.text_ids.cpu().numpy()] = fold.text_image_ids.cpu().numpy()
        sides = {
            "i2t": (fold.image_ids, fold.i2t, fold.i2t_match, fold.i2t_best),
            "t2i": (fold.text_ids, fold.t2i, fold.t2i_match, fold.t2i_best),
        }
        fold_images = {"i2t": fold.image_ids, "t2i": fold.text_image_ids}
        for direction, (ids, ranks, match, best) in sides.items():
            described = partial(_described, images=images, texts=texts, owners=owners)
            of_items = partial(described, of_text=direction == "i2t")
            hardest = best.negatives(keep)
            columns = {
                "fold": pa.array(np.full(len(ids), number, np.int32)),
                "direction": pa.array([direction] * len(ids), pa.string()),
                **described(ids.cpu().numpy(), of_text=direction == "t2i"),
                "image_id": pa.array(fold_images[direction].cpu().numpy()),
                "rank": pa.array((ranks.cpu().numpy() + 1).astype(np.int32)),
                "score": pa.array(None if match is None else match.float().cpu().numpy()),
                "best": _lists(best.first(keep), of_items),
                "negatives": _lists(hardest, of_items, ~hardest.matches),
            }
            tables.append(pa.table(columns))
    content = json.dumps({"keep": keep, **(about or {})}, ensure_ascii=False)
    table = pa.concat_tables(tables).replace_schema_metadata({_KEY: content.encode()})
    with atomic_write(user_path(path)) as file:
        pq.write_table(table, file, compression="zstd")


def _check_known(name: str, texts: Sequence[str], *ids: Tensor) -> None:
    """Raise unless there is a text for every id."""
    largest = max(int(one.max()) for one in ids if one.numel())
    if largest >= len(texts):
        raise InputError(f"{name} has {len(texts)}; expected {largest + 1} or more, one an id")


def _described(
    ids: np.ndarray, images: pa.Array, texts: pa.Array, owners: np.ndarray, *, of_text: bool
) -> dict[str, pa.Array]:
    """Id, file name and caption of some images or captions."""
    import pyarrow as pa

    return {
        "id": pa.array(ids),
        "image": images.take(pa.array(owners[ids] if of_text else ids)),
        "caption": texts.take(pa.array(ids)) if of_text else pa.nulls(len(ids), pa.string()),
    }


def _lists(
    best: BestItems,
    described: Callable[[np.ndarray], dict[str, pa.Array]],
    wanted: Tensor | None = None,
) -> pa.Array:
    """A list of items for each query; of some, where ``wanted`` says which."""
    import pyarrow as pa

    wanted = torch.ones_like(best.matches) if wanted is None else wanted
    fields = described(best.items[wanted].numpy())
    fields["score"] = pa.array(best.scores[wanted].numpy())
    fields["match"] = pa.array(best.matches[wanted].numpy())
    items = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    offsets = np.concatenate([[0], wanted.sum(1).cumsum(0).numpy()])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items)


def _check_columns(table: pa.Table) -> None:
    """Raise ``ValueError`` unless the columns that ranks are made of are whole."""
    import pyarrow as pa

    for name in (*_NUMBERS, *_TEXTS):
        column = table[name]
        fits = (pa.types.is_integer if name in _NUMBERS else pa.types.is_string)(column.type)
        if not fits or (column.null_count and name != "caption"):
            raise ValueError(
                f"column {name!r} has values of {column.type}, {column.null_count} of them missing"
            )
    if sorted(table["direction"].unique().to_pylist()) != sorted(DIRECTIONS):
        raise ValueError(f"expected queries of both directions, {' and '.join(DIRECTIONS)}")
    if min(table[name].to_numpy().min() for name in ("rank", "fold")) < 1:
        raise ValueError("expected ranks and folds from 1")


@dataclass(frozen=True)
class QueryFile:
    """What ``queries.parquet`` holds; see :func:`write_queries` for its columns.

    Args:
        path: of the file.
        table: a row a query.
        about: what was evaluated.
    """

    path: Path
    table: pa.Table
    about: dict[str, Any]

    @cached_property
    def folds(self) -> list[QueryRanks]:
        """The ranks of each fold, with the ids of images and captions."""
        names = ("fold", "direction", "rank", "id", "image_id")
        fold, direction, rank, ids, owner = (self.table[name].to_numpy() for name in names)
        found = []
        for number in range(1, int(fold.max()) + 1):
            i2t, t2i = ((fold == number) & (direction == name) for name in DIRECTIONS)
            found.append(
                QueryRanks(
                    torch.tensor(rank[i2t].astype(np.int64) - 1),
                    torch.tensor(rank[t2i].astype(np.int64) - 1),
                    torch.tensor(owner[i2t]),
                    torch.tensor(owner[t2i]),
                    text_ids=torch.tensor(ids[t2i]),
                )
            )
        return found


def read_queries(path: str | Path) -> QueryFile:
    """Read what :func:`write_queries` wrote.

    Args:
        path: of the file, or of the folder that it is in.

    Raises:
        FileNotFoundError: there is none.
        InputError: the file is of another form.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = user_path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; expected what itmkit test writes")
    try:
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[_KEY])
        if not isinstance(about, dict) or not len(table):
            raise ValueError("it has no rows, or does not say what was evaluated")
        _check_columns(table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not hold the ranks of queries: {error}") from error
    return QueryFile(file, table, about)
