"""Uploads of a saved retriever to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from itmkit.checks import InputError
from itmkit.pretrained import check_token, client_error, hub_is_reached
from itmkit.retriever.card import CARD
from itmkit.retriever.facts import HUB_NAME
from itmkit.retriever.folder import FILES, MANIFEST, save

if TYPE_CHECKING:
    from itmkit.retriever.retriever import Retriever

#: what a repository may hold before: what the hub makes, and what people write about a model
_KEPT = (".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt")


def push(
    retriever: Retriever, repo_id: str, *, private: bool | None, token: str | None, card: bool
) -> str:
    """Upload a retriever; see :meth:`Retriever.push_to_hub`."""
    from huggingface_hub import HfApi, constants, get_token

    if not isinstance(repo_id, str) or "/" not in repo_id or not HUB_NAME.fullmatch(repo_id):
        raise InputError(f"repo_id is {repo_id!r}; expected 'user/name'")
    if private is not None and not isinstance(private, bool):
        raise InputError(f"private is {private!r}; expected True, False or None")
    check_token(token)
    if token is None and get_token() is None:
        raise InputError(
            "token is None, and none is stored; expected one that may write: `hf auth login`, the "
            "environment variable HF_TOKEN, or token="
        )
    if not hub_is_reached():
        raise InputError(f"repo_id is {repo_id!r}, but {constants.ENDPOINT} cannot be reached")
    hub = HfApi(endpoint=constants.ENDPOINT, token=token)
    with TemporaryDirectory() as work:
        folder = Path(work) / "saved"
        save(retriever, folder, hub_name=repo_id)
        with _refusals(repo_id):
            hub.create_repo(repo_id, private=private, exist_ok=True)
            files = _check_repository(hub, repo_id, private)
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"{type(retriever.model).__name__}, saved by itmkit",
                ignore_patterns=None if card or CARD not in files else [CARD],
                delete_patterns=list(FILES),  # of another model, those that this one has not
            )
    return str(commit.commit_url)


def _check_repository(hub: Any, repo_id: str, private: bool | None) -> set[str]:
    """The files that a repository holds, if they may be replaced."""
    about = hub.model_info(repo_id)
    if private and not about.private:
        raise InputError(f"private is True, but {repo_id} is there and public; expected None")
    files = {file.rfilename for file in about.siblings or []}
    other = sorted(files - {*_KEPT, *FILES})
    if other and MANIFEST not in files:
        raise InputError(
            f"repo_id is {repo_id!r}, which holds other files, such as {other[0]!r}; expected a "
            "new repository, or one of a saved retriever"
        )
    return files


@contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    """What the hub refuses, and a connection that breaks, as an error of one line."""
    try:
        yield
    except InputError:
        raise
    except (client_error(), OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"repo_id is {repo_id!r}; the hub says: {reason}") from error
