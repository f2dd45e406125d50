"""``itmkit search``: find pictures of an index by words, a picture, or both."""

from __future__ import annotations

import json as json_format
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.files import check_new_file, user_path

ARGUMENTS: dict[str, Any] = {
    "index": {},
    "query": {"nargs": "?"},
    "-k --k": {"type": int, "default": 10},
    "--json": {"action": "store_true"},
}


def search(
    index: str,
    query: str | None = None,
    *,
    image: str | None = None,
    k: int = 10,
    where: str | None = None,
    json: bool = False,
    html: Path | None = None,
    model: str | None = None,
    top_k: int | None = None,
    device: str | None = None,
) -> None:
    """Find the pictures of an index that fit a sentence, a picture, or both.

    Args:
        index: Folder of an index, or NAME of a run for runs/NAME/index.
        query: A sentence.
        image: A picture to find others like it.
        k: Pictures wanted.
        where: Condition on columns, such as 'year > 2019'.
        json: Print a JSON list of path, score and probability.
        html: Write a page with small pictures, too.
        model: Model to search with; where null, the one the index was made with.
        top_k: How many of the best pictures a second stage puts in order, for words alone; where
            null, as the model says.
        device: Where null, a GPU if there is one.
    """
    from itmkit.report.page import write_hits
    from itmkit.retriever.loading import open_index
    from itmkit.retriever.queries import query_notes

    with redirect_stdout(sys.stderr):
        if query is None and image is None:
            raise InputError("query is null; expected a sentence, or --image FILE")
        if html is not None:
            check_new_file("html", user_path(html))
        opened: Any = open_index(index, model=model, device=device)
        hits = opened.search(query, k, image=image, where=where, top_k=top_k)
        if query is not None:
            for note in query_notes(opened.encoder.tokenizer, query):
                print(note)
        if html is not None:
            write_hits(user_path(html), opened, hits, query, image=image, where=where)
            print(f"page: {html}")
    if json:
        shown = ("path", "score", "probability")
        found = [{name: getattr(hit, name) for name in shown} for hit in hits]
        print(json_format.dumps(found, ensure_ascii=False, default=str))
        return
    for hit in hits:
        chance = "" if hit.probability is None else f"{hit.probability:6.0%}  "
        print(f"{hit.score:8.4f}  {chance}{hit.path}")
    if note := opened.verdict(hits):
        print(note)
