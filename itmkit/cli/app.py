"""``itmkit app``: a search page of an index for the browser."""

from __future__ import annotations

from itmkit.extras import require_extra


def app(
    index: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str | None = None,
    device: str | None = None,
) -> None:
    """Search an index on a page in the browser, until Ctrl-C; needs itmkit[app].

    Only this machine can reach the page, unless --host says otherwise. There are no accounts and no
    encryption: whoever reaches it sees the pictures of the index.

    Args:
        index: Folder of an index, or NAME of a run for runs/NAME/index.
        host: Address to serve on; 0.0.0.0 lets every machine reach it.
        port: Port to serve on; 0 takes a free one.
        model: Model to search with; where null, the one the index was made with.
        device: Where null, a GPU if there is one.
    """
    require_extra("app", "starlette>=1.0", "uvicorn>=0.40")

    from itmkit.app import SearchPage, listen, serve
    from itmkit.app.server import address_of
    from itmkit.retriever.loading import open_index

    with listen(host, port) as listening:
        opened = open_index(index, model=model, device=device)
        page = SearchPage(opened)
        print(f"{len(opened):,} pictures: {address_of(listening)} (Ctrl-C ends)", flush=True)
        serve(page, listening, host=host)
    print("app: ended")
