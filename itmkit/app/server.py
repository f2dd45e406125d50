"""The search page over HTTP, on this machine alone unless another host is given."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from itmkit.app.page import MOST_BYTES, RequestError, SearchPage, Size
from itmkit.checks import InputError, check_count
from itmkit.extras import require_extra
from itmkit.report.page import render

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

_THREADS = 4  # that decode pictures: one of 100 megapixels takes 300 MB
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def create_app(page: SearchPage, *, hosts: Collection[str] = ()) -> ASGIApp:
    """The page as an ASGI application; needs ``itmkit[app]``.

    ``/`` is the page, ``/search`` gives JSON, ``/picture/ITEM`` and ``/explain/ITEM`` give WebP.
    Errors are ``{"error": "one line"}``: the text of a :class:`RequestError`, and of any other
    error its type alone, for it may name files of this machine; the rest is on the terminal.

    Args:
        page: what it shows.
        hosts: names of this machine that requests may use, besides IP addresses and
            ``localhost``.

    Raises:
        InputError: Starlette is not installed.
    """
    require_extra("app", "starlette>=1.0")
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    style = render("app.css", package="itmkit.app")
    script = files("itmkit.app").joinpath("templates/app.js").read_text(encoding="utf-8")
    threads: list[CapacityLimiter] = []  # made in the loop that it belongs to

    async def in_thread(work: Callable[[], Any]) -> Any:
        if not threads:
            threads.append(CapacityLimiter(_THREADS))
        return await to_thread.run_sync(work, limiter=threads[0])

    def item_of(request: Request) -> int:
        item: int = request.path_params["item"]
        if item >= len(page.index):
            raise HTTPException(404, f"item is {item}; expected one below {len(page.index)}")
        return item

    async def search(request: Request) -> Response:
        given = request.query_params
        picture = await _picture(request) if request.method == "POST" else None
        like = given.get("like")
        work = partial(
            page.search,
            given.get("q", ""),
            _number("k", given.get("k", "24")),
            where=given.get("where", ""),
            picture=picture,
            like=None if like is None else _number("like", like),
        )
        return JSONResponse(await in_thread(work))

    async def picture(request: Request) -> Response:
        item, size = item_of(request), request.query_params.get("size", "small")
        if size not in ("small", "large"):
            raise RequestError(f"size is {size[:40]!r}; expected small or large")
        tag = f'"{page.index.items["hash"][item].as_py()}-{size}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        content = await in_thread(partial(page.picture, item, cast(Size, size)))
        if content is None:
            raise HTTPException(404, "the picture cannot be read")
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        return Response(content, media_type="image/webp", headers=headers)

    async def explain(request: Request) -> Response:
        item, words = item_of(request), request.query_params.get("q", "").strip()
        if not words:
            raise RequestError("q is empty; expected a sentence")
        content = await in_thread(partial(page.explanation, item, words))
        return Response(content, media_type="image/webp", headers={"cache-control": "no-store"})

    async def start(request: Request) -> Response:
        return HTMLResponse(page.html())

    async def app_css(request: Request) -> Response:
        return Response(style, media_type="text/css")

    async def app_js(request: Request) -> Response:
        return Response(script, media_type="text/javascript")

    async def no_icon(request: Request) -> Response:
        return Response(status_code=204)

    async def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": " ".join(str(error).split())}, 400)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    async def disconnected(request: Request, error: Exception) -> Response:
        return Response(status_code=400)

    async def fault(request: Request, error: Exception) -> Response:
        line = f"{type(error).__name__}; the terminal of itmkit app has more of it"
        return JSONResponse({"error": line}, 500)

    routes = [
        Route("/", start),
        Route("/app.css", app_css),
        Route("/app.js", app_js),
        Route("/favicon.ico", no_icon),
        Route("/search", search, methods=["GET", "POST"]),
        Route("/picture/{item:int}", picture),
        Route("/explain/{item:int}", explain),
    ]
    handlers = {
        RequestError: refused,
        HTTPException: http_error,
        ClientDisconnect: disconnected,
        Exception: fault,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts)


class Guard:
    """Refuses what another site's page may send, and sets the headers of every response.

    A page elsewhere can make its own name lead to this machine (DNS rebinding), and would then read
    what is served here. Its requests carry its name as ``Host``, which is refused; an IP address
    cannot be made to lead anywhere else. What it posts to the true address carries its name as
    ``Origin``, which is refused too.

    Args:
        app: what is guarded.
        hosts: further names that are accepted.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self.app = app
        self.hosts = {"localhost", *(host.lower() for host in hosts if host)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            error = f"host is {host[:100]!r}; expected localhost or an IP address"
            await JSONResponse({"error": error}, 400)(scope, receive, guarded)
        elif origin is not None and not _same_host(origin, host):
            error = f"origin is {origin[:100]!r}; expected this page"
            await JSONResponse({"error": error}, 403)(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.hosts:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for requests, before there is anyone to answer them.

    Args:
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        InputError: there is no such address, or the port is taken or out of range.
    """
    check_count(0, port=port)
    if port > 65535:
        raise InputError(f"port is {port}; expected at most 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", error)
        raise InputError(
            f"host is {host!r} and port is {port}: {reason}; expected an address of this machine "
            "and a free port, which --port 0 finds"
        ) from error


def serve(page: SearchPage, listening: socket.socket, *, host: str = "") -> None:
    """Answer requests until Ctrl-C; needs ``itmkit[app]``.

    Args:
        page: what is shown.
        listening: what :func:`listen` gave; closed at the end.
        host: the name that was given to it, which requests may use.

    Raises:
        InputError: Starlette or uvicorn is not installed.
    """
    require_extra("app", "starlette>=1.0", "uvicorn>=0.40")
    import uvicorn

    own = socket.gethostname()
    app = create_app(page, hosts=[host, own, f"{own}.local"])
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=2
    )
    config.server_header = False
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds a socket.

    Example:
        >>> with listen("127.0.0.1", 0) as listening:
        ...     address_of(listening)
        'http://127.0.0.1:.../'
    """
    host, port = listening.getsockname()[:2]
    number = ipaddress.ip_address(host.partition("%")[0])
    if number.is_unspecified:
        number = ipaddress.ip_address("127.0.0.1" if number.version == 4 else "::1")
    return f"http://[{number}]:{port}/" if number.version == 6 else f"http://{number}:{port}/"


def _same_host(origin: str, host: str) -> bool:
    """Whether an origin, such as ``http://localhost:8000``, is of the host of the request."""
    with suppress(ValueError):
        return urlsplit(origin).netloc == host
    return False


async def _picture(request: Request) -> bytes:
    """What a request sends, up to the limit."""
    from starlette.exceptions import HTTPException

    content = bytearray()
    too_large = HTTPException(
        413, f"picture has more than {MOST_BYTES / 1e6:g} MB; expected a smaller file"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise too_large
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise too_large
    if not content:
        raise RequestError("picture is empty; expected the content of a file")
    return bytes(content)


def _number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise RequestError(f"{name} is {text[:40]!r}; expected a whole number")
    return int(text)
