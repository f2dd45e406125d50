"""``itmkit app``: a search page of an index for the browser."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli.parser import OneLineParser
from itmkit.extras import require_extra


def app(words: Sequence[str]) -> None:
    """Search an index on a page in the browser, until Ctrl-C; needs itmkit[app].

    Only this machine can reach the page, unless --host says otherwise. There are no accounts and no
    encryption: whoever reaches it sees the pictures of the index.
    """
    parser = OneLineParser(prog="itmkit app", allow_abbrev=False, description=app.__doc__)
    add = parser.add_argument
    add("index", type=str, help="Folder of an index, or NAME of a run for runs/NAME/index.")
    add("--host", type=str, default="127.0.0.1", help="Address; 0.0.0.0 for every machine.")
    add("--port", type=int, default=8000, help="0 takes a free one.")
    add("--model", type=str | None, help="Where null, the model the index was made with.")
    add("--device", type=str | None, help="Where null, a GPU if there is one.")
    options = parser.parse_args(list(words))
    require_extra("app", "starlette>=1.0", "uvicorn>=0.40")

    from itmkit.app import SearchPage, listen, serve
    from itmkit.app.server import address_of
    from itmkit.retriever.loading import open_index

    with listen(options.host, options.port) as listening:
        index = open_index(options.index, model=options.model, device=options.device)
        page = SearchPage(index)
        print(f"{len(index):,} pictures: {address_of(listening)} (Ctrl-C ends)", flush=True)
        serve(page, listening, host=options.host)
    print("app: ended")
