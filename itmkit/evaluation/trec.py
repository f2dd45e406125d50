"""Runs and relevance judgements in the form of TREC, which ir-measures and trec_eval read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from itmkit.checks import InputError
from itmkit.files import user_path, write_text
from itmkit.metrics import QueryRanks
from itmkit.metrics.query_ranks import as_folds


def write_trec(
    folder: str | Path, folds: QueryRanks | Sequence[QueryRanks], *, tag: str = "itmkit"
) -> None:
    """Write ``i2t.run``, ``i2t.qrels``, ``t2i.run`` and ``t2i.qrels``.

    Images are called ``i7`` and captions ``t7``, by their ids. Grades are rounded to whole numbers
    from 1, as TREC has them. The score is that of the model;
    after a second stage, whose scores cannot be compared with the others, it counts down to 1.
    Programs of TREC put tied items in the reverse order of their names; itmkit counts ties against
    the query, so its recall is lower where items are tied.

    Args:
        folder: made if it is not there.
        folds: of a gallery or of each fold, as :func:`itmkit.retrieval.rank_queries` gives them
            with ``keep``.
        tag: name of the run, in its last column.

    Raises:
        InputError: no folds, ranks without best items, or a tag with white space.

    Example:
        ``ir_measures i2t.qrels i2t.run Success@1 Success@5`` gives R@1 and R@5 as shares.
    """
    folds = as_folds(folds=folds)
    if not isinstance(tag, str) or len(tag.split()) != 1:
        raise InputError(f"tag is {tag!r}; expected one word")
    runs: dict[str, list[str]] = {"i2t": [], "t2i": []}
    qrels: dict[str, list[str]] = {"i2t": [], "t2i": []}
    for fold in folds:
        if fold.i2t_best is None or fold.t2i_best is None or fold.pairs is None:
            raise InputError("folds has no best items; expected those of rank_queries(keep=…)")
        assert fold.image_ids is not None
        assert fold.text_ids is not None
        grades = [1] * len(fold.pairs)
        if fold.grades is not None:
            grades = fold.grades.round().clamp(min=1).int().tolist()
        queries = set(fold.image_ids.tolist()), set(fold.text_ids.tolist())
        for (image, text), grade in zip(fold.pairs.tolist(), grades, strict=True):
            if image in queries[0]:
                qrels["i2t"].append(f"i{image} 0 t{text} {grade}\n")
            if text in queries[1]:
                qrels["t2i"].append(f"t{text} 0 i{image} {grade}\n")
        sides = {
            "i2t": ("i", "t", fold.image_ids, fold.i2t_best),
            "t2i": ("t", "i", fold.text_ids, fold.t2i_best),
        }
        for side, (query, item, ids, best) in sides.items():
            width = best.items.shape[1]
            scores = best.scores.tolist()
            if best.reranked:
                scores = [list(range(width, 0, -1))] * len(scores)
            for number, items, own in zip(ids.tolist(), best.items.tolist(), scores, strict=True):
                runs[side] += [
                    f"{query}{number} Q0 {item}{one} {place} {score:.9g} {tag}\n"
                    for place, (one, score) in enumerate(zip(items, own, strict=True), 1)
                ]
    for side in runs:
        write_text(user_path(folder) / f"{side}.run", "".join(runs[side]))
        write_text(user_path(folder) / f"{side}.qrels", "".join(qrels[side]))
