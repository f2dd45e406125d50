"""A search page for the browser: ``itmkit app``."""

from itmkit.app.page import RequestError, SearchPage
from itmkit.app.server import create_app, listen, serve

__all__ = ["RequestError", "SearchPage", "create_app", "listen", "serve"]
