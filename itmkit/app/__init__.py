"""A search page for the browser: ``itmkit app``."""

from itmkit.app.page import SearchPage
from itmkit.app.server import create_app, listen, serve

__all__ = ["SearchPage", "create_app", "listen", "serve"]
