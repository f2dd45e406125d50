"""A hub of models on this machine, as far as a download by name needs one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


@contextmanager
def local_hub(folder: Path, licence: str) -> Iterator[str]:
    """Serve ``folder/OWNER/NAME`` as the model OWNER/NAME; gives the endpoint."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            found = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/\w+/(.+)", path)
            about = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/\w+)?", path)
            content, headers, status = b"", {}, 200
            if found and (folder / found[1] / found[2]).is_file():
                content = (folder / found[1] / found[2]).read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            elif about and (folder / about[1]).is_dir():
                files = sorted((folder / about[1]).iterdir())
                siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
                answer = {"id": about[1], "sha": COMMIT, "siblings": siblings}
                content = json.dumps(answer | {"cardData": {"license": licence}}).encode()
            elif path != "/":
                status = 404
                asked = re.match(r"(?:/api/models)?/([\w-]+/[\w-]+)/", path)
                repo = asked is not None and (folder / asked[1]).is_dir()
                headers = {"X-Error-Code": "EntryNotFound" if repo else "RepoNotFound"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
