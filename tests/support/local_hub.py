"""A hub of models on this machine: what downloads by name and uploads need of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_of_the_owner"
PRIVATE = ".private"  # a file by which a repository is private
_NAME = r"[\w-]+/[\w-]+"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", text: str = "", **content: str) -> None:
        self.status, self.code, self.text, self.content = status, code, text, content


@contextmanager
def local_hub(folder: Path, licence: str = "mit", *, large_files: bool = False) -> Iterator[str]:
    """Serve ``folder/OWNER/NAME`` as the model OWNER/NAME; gives the endpoint.

    ``folder/OWNER/NAME@TAG`` is its revision TAG. Whoever has :data:`TOKEN` may write to the
    namespace ``me``, alone may see what is private there, and uploads weights as large files
    (LFS) where ``large_files``.
    """
    large: dict[str, bytes] = {}

    def repository(name: str, revision: str = "main") -> Path:
        for path in sorted((folder / name).parent.glob(f"{Path(name).name}*")):
            tag = path.name.partition("@")[2] or "main"
            if path.name.partition("@")[0] == Path(name).name and revision in (tag, commit(path)):
                return path
        raise Refused(404, "RevisionNotFound" if (folder / name).is_dir() else "RepoNotFound")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(self._read, body=False)

        def do_GET(self) -> None:
            self._answer(self._read)

        def do_POST(self) -> None:
            self._answer(self._write)

        def do_PUT(self) -> None:
            large[self.path.rpartition("/")[2]] = self._body()
            self._answer(lambda path: (b"", {}))

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        @property
        def _owner(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _answer(self, make: Any, *, body: bool = True) -> None:
            try:
                content, headers = make(self.path.partition("?")[0])
                status = 200
            except ConnectionAbortedError:
                self.close_connection = True
                return
            except Refused as error:
                status = error.status
                headers = {"X-Error-Code": error.code, "X-Error-Message": error.text}
                content = json.dumps({"error": error.text} | error.content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _seen(self, name: str, revision: str = "main") -> Path:
            path = repository(name, revision)
            if (path / PRIVATE).exists() and not self._owner:
                raise Refused(401, "RepoNotFound")
            return path

        def _read(self, path: str) -> tuple[bytes, dict[str, str]]:
            if path == "/":
                return b"", {}
            if found := re.fullmatch(rf"/({_NAME})/resolve/([\w.-]+)/(.+)", path):
                where = self._seen(found[1], found[2])
                head = {"X-Repo-Commit": commit(where)}
                if not (where / found[3]).is_file():
                    raise Refused(404, "EntryNotFound")
                if where.name == "unreliable" and self.command == "GET":
                    raise ConnectionAbortedError
                content = (where / found[3]).read_bytes()
                return content, head | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            if found := re.fullmatch(rf"/api/models/({_NAME})(?:/revision/([\w.-]+))?", path):
                where = self._seen(found[1], found[2] or "main")
                files = [file for file in sorted(where.iterdir()) if file.name != PRIVATE]
                about: dict[str, Any] = {"id": found[1], "sha": commit(where)}
                about["siblings"] = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
                about["private"] = (where / PRIVATE).exists()
                return json.dumps(about | {"cardData": {"license": licence}}).encode(), {}
            if found := re.fullmatch(rf"/api/models/({_NAME})/tree/([\w.-]+)", path):
                where = self._seen(found[1], found[2])
                files = [file for file in sorted(where.iterdir()) if file.name != PRIVATE]
                entry = {"type": "file", "oid": "0" * 40}
                tree = [entry | {"path": f.name, "size": f.stat().st_size} for f in files]
                return json.dumps(tree).encode(), {}
            asked = re.match(rf"(?:/api/models)?/({_NAME})/", path)
            if asked and (folder / asked[1]).is_dir():
                raise Refused(404, "EntryNotFound")
            raise Refused(404, "RepoNotFound")

        def _write(self, path: str) -> tuple[bytes, dict[str, str]]:
            content = self._body()
            if path == "/api/validate-yaml":
                if "license: refused" in content.decode():
                    raise Refused(400, text="license")
                return b"{}", {}
            if not self._owner:
                raise Refused(401, text="Invalid username or password.")
            here = f"http://{self.headers['Host']}"
            answer: dict[str, Any] = {}
            if path == "/api/repos/create":
                asked = json.loads(content)
                if asked["organization"] != "me":
                    raise Refused(403, text=f"You may not write to {asked['organization']}.")
                name = f"{asked['organization']}/{asked['name']}"
                if (folder / name).exists():
                    url = f"{here}/{name}"
                    raise Refused(409, text="You already created this model repo", url=url)
                (folder / name).mkdir(parents=True)
                (folder / name / ".gitattributes").write_text("")
                if asked.get("visibility") == "private":
                    (folder / name / PRIVATE).touch()
                answer = {"url": f"{here}/{name}"}
            elif found := re.fullmatch(rf"/api/models/({_NAME})/preupload/main", path):
                repository(found[1])
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs"
                        if large_files and file["path"].endswith(".safetensors")
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(content)["files"]
                ]
                answer = {"files": modes}
            elif found := re.fullmatch(rf"/({_NAME})\.git/info/lfs/objects/batch", path):
                objects = [
                    one | {"actions": {"upload": {"href": f"{here}/large/{one['oid']}"}}}
                    for one in json.loads(content)["objects"]
                ]
                answer = {"objects": objects}
            elif found := re.fullmatch(rf"/api/models/({_NAME})/commit/main", path):
                where = repository(found[1])
                if where.name == "unreliable":
                    raise ConnectionAbortedError  # the answer never comes
                for line in content.splitlines():
                    self._commit(where, **json.loads(line))
                sha = commit(where)
                url = f"{here}/{found[1]}/commit/{sha}"
                answer = {"commitUrl": url, "commitOid": sha}
            else:
                raise Refused(404)
            return json.dumps(answer).encode(), {"Content-Type": "application/json"}

        def _commit(self, where: Path, key: str, value: dict[str, str]) -> None:
            if key == "file":
                (where / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                (where / value["path"]).write_bytes(large[value["oid"]])
            elif key == "deletedFile":
                (where / value["path"]).unlink()

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


def hub_constants(endpoint: str, cache: Path) -> dict[str, Any]:
    """What ``huggingface_hub.constants`` has to hold to use such a hub, with a cache of its own."""
    return {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
    }


def commit(path: Path) -> str:
    """The name of a commit: of the contents of a folder."""
    digest = hashlib.sha1()
    for file in sorted(path.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def tag(folder: Path, name: str, revision: str) -> None:
    """Keep what a model is now as a revision."""
    shutil.copytree(folder / name, folder / f"{name}@{revision}")
