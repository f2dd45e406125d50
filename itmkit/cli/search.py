"""``itmkit search``: find pictures of an index by words, a picture, or both."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.cli.parser import OneLineParser
from itmkit.files import check_new_file, user_path


def search(words: Sequence[str]) -> None:
    """Find the pictures of an index that fit a sentence, a picture, or both."""
    parser = OneLineParser(prog="itmkit search", allow_abbrev=False, description=search.__doc__)
    add = parser.add_argument
    add("index", type=str, help="Folder of an index, or NAME of a run for runs/NAME/index.")
    add("query", nargs="?", type=str, help="A sentence.")
    add("--image", type=str, help="A picture to find others like it.")
    add("-k", "--k", type=int, default=10, help="Pictures wanted.")
    add("--where", type=str, help="Condition on columns, such as 'year > 2019'.")
    add("--json", action="store_true", help="Print a JSON list of path, score and probability.")
    add("--html", type=Path | None, help="Write a page with small pictures, too.")
    add("--model", type=str | None, help="Where null, the model the index was made with.")
    add("--top_k", type=int | None, help="Best pictures that a second stage puts in order.")
    add("--device", type=str | None, help="Where null, a GPU if there is one.")
    options = parser.parse_args(list(words))
    with redirect_stdout(sys.stderr):
        index, hits = _found(options)
    if options.json:
        found = [
            {"path": str(hit.path), "score": hit.score, "probability": hit.probability}
            for hit in hits
        ]
        print(json.dumps(found, ensure_ascii=False))
        return
    for hit in hits:
        chance = "" if hit.probability is None else f"{hit.probability:6.0%}  "
        print(f"{hit.score:8.4f}  {chance}{hit.path}")
    if note := index.verdict(hits):
        print(note)


def _found(options: Any) -> tuple[Any, list[Any]]:
    from itmkit.report.page import write_hits
    from itmkit.retriever.loading import open_index
    from itmkit.retriever.queries import query_notes

    if options.query is None and options.image is None:
        raise InputError("query is null; expected a sentence, or --image FILE")
    if options.html is not None:
        check_new_file("html", user_path(options.html))
    index: Any = open_index(options.index, model=options.model, device=options.device)
    image = options.image
    hits = index.search(
        options.query, options.k, image=image, where=options.where, top_k=options.top_k
    )
    if options.query is not None:
        for note in query_notes(index.encoder.tokenizer, options.query):
            print(note)
    if options.html is not None:
        write_hits(user_path(options.html), index, hits, options.query, image=image)
        print(f"page: {options.html}")
    return index, hits
