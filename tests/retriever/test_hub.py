"""Uploads and downloads of saved retrievers, against a hub on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.hub
from clip_models import save_clip
from huggingface_hub import ModelCard, constants
from local_hub import PRIVATE, TOKEN, hub_constants, local_hub, tag

import itmkit
from itmkit import pretrained
from itmkit.checks import InputError
from itmkit.retriever import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:.*are unknown to the")


@pytest.fixture
def retriever(pixel_run: Path) -> Retriever:
    return itmkit.load(pixel_run, device="cpu")


@pytest.fixture(params=[False, True], ids=["files", "large files"])
def large_files(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """The folder of a hub, which is the one of this process, with its owner logged in."""
    large = "large_files" in request.fixturenames and request.getfixturevalue("large_files")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", large)  # large files go to its own servers
    monkeypatch.setattr(pretrained, "_reached", [])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    with local_hub(tmp_path / "hub", large_files=large) as endpoint:
        for name, value in hub_constants(endpoint, tmp_path / "cache").items():
            monkeypatch.setattr(constants, name, value)
        # transformers asks the hub that it asked first, for minutes where that is gone
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        yield tmp_path / "hub"


def test_pushed_and_loaded(
    hub: Path,
    large_files: bool,
    retriever: Retriever,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = retriever.push_to_hub("me/mine", licence="apache-2.0")
    assert re.fullmatch(rf"{constants.ENDPOINT}/me/mine/commit/\w{{40}}", address)
    found = itmkit.load("me/mine", device="cpu")
    assert found.source == "me/mine"
    assert found.facts == retriever.facts
    pictures = [photos / "images/0.jpg", photos / "images/1.jpg"]
    expected = retriever.scores(pictures, ["a dog", "a red cat"])
    assert torch.equal(found.scores(pictures, ["a dog", "a red cat"]), expected)
    size = (hub / "me/mine/model.safetensors").stat().st_size
    line = f"downloading me/mine from {constants.ENDPOINT}: {size / 1e6:,.1f} MB, licence mit\n"
    assert line in capsys.readouterr().err
    itmkit.load("me/mine")
    assert "downloading" not in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "_reached", [])
    offline = itmkit.load("me/mine", device="cpu")
    assert offline.fingerprint == found.fingerprint


def test_pushed_again_and_revisions(
    hub: Path, retriever: Retriever, feature_run: Path, tmp_path: Path
) -> None:
    retriever.push_to_hub("me/mine")
    tag(hub, "me/mine", "v1")
    other = itmkit.load(feature_run, device="cpu")
    (hub / "me/mine/README.md").write_text("mine")
    other.push_to_hub("me/mine", card=False)
    assert (hub / "me/mine/README.md").read_text() == "mine"
    assert itmkit.load("me/mine").fingerprint == other.fingerprint
    first = itmkit.load("me/mine", revision="v1")
    assert first.fingerprint == retriever.fingerprint
    assert first.source == "me/mine@v1"
    save_clip(tmp_path / "clip")
    itmkit.load(tmp_path / "clip", device="cpu").push_to_hub("me/mine")
    assert not (hub / "me/mine/vocabulary.json").exists()  # of the model that was there
    assert ModelCard((hub / "me/mine/README.md").read_text()).data.library_name == "itmkit"
    with pytest.raises(InputError, match=r"revision is 'v2'; expected a branch, tag or commit of"):
        itmkit.load("me/mine", revision="v2")
    with pytest.raises(InputError, match=r"revision is 'v1', and 'clip' is local; expected None"):
        itmkit.load("clip", revision="v1")


def test_models_of_transformers_go_on_by_name(hub: Path) -> None:
    save_clip(hub / "someone/clip")
    found = itmkit.load("someone/clip")
    assert type(found.model).__name__ == "DualEncoder"
    assert found.facts.base_models == ["someone/clip"]
    with pytest.raises(InputError, match=r"of which someone/clip has no retriever\.yaml"):
        itmkit.load("someone/clip", revision="main")
    found.push_to_hub("me/clip")
    assert ModelCard((hub / "me/clip/README.md").read_text()).data.base_model == ["someone/clip"]


def test_private(hub: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    retriever.push_to_hub("me/mine", private=True, token=TOKEN)
    with pytest.raises(InputError, match="path_or_name is 'me/mine'; expected a model on the hub"):
        itmkit.load("me/mine")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert itmkit.load("me/mine").fingerprint == retriever.fingerprint
    retriever.push_to_hub("me/open")
    before = sorted((hub / "me/open").iterdir())
    with pytest.raises(InputError, match="private is True, but me/open is there and public"):
        retriever.push_to_hub("me/open", private=True)
    assert sorted((hub / "me/open").iterdir()) == before


def test_private_by_a_token_of_the_call(
    hub: Path,
    retriever: Retriever,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    retriever.push_to_hub("me/mine", private=True, token=TOKEN)
    with pytest.raises(InputError, match="path_or_name is 'me/mine'; expected a model") as caught:
        itmkit.load("me/mine", token="hf_other")
    assert "hf_other" not in str(caught.value)
    found = itmkit.load("me/mine", device="cpu", token=TOKEN)
    assert found.fingerprint == retriever.fingerprint
    assert re.search(r"downloading me/mine from .* MB, licence mit", capsys.readouterr().err)
    assert TOKEN not in repr(vars(found))
    save_clip(hub / "me/clip")  # of transformers, with tokenizer and image processor
    (hub / "me/clip" / PRIVATE).touch()
    with pytest.raises(InputError, match="path_or_name is 'me/clip'; expected a model"):
        itmkit.load("me/clip")
    assert type(itmkit.load("me/clip", token=TOKEN).model).__name__ == "DualEncoder"


TOKENS = [
    ("", "is empty"),
    (b"hf_secret", "is of type bytes"),
    (True, "is of type bool"),
    ("hf_secret\n", "holds white space, such as the end of a line, or what is not ASCII"),
    ("hf_sécret", "holds white space, such as the end of a line, or what is not ASCII"),
]


@pytest.mark.parametrize(("token", "what"), TOKENS)
def test_tokens_that_are_none(token: Any, what: str, hub: Path, retriever: Retriever) -> None:
    """They are refused, and not shown; the stored one is not taken in their place."""
    for call in (itmkit.load, retriever.push_to_hub):
        with pytest.raises(
            InputError, match=rf"^token {what}; expected a token of the hub, or None$"
        ):
            call("me/mine", token=token)
    assert not (hub / "me").exists()


@pytest.mark.parametrize("revision", ["", " ", 5, b"main"])
def test_revisions_that_are_none(revision: Any, hub: Path) -> None:
    with pytest.raises(
        InputError, match=r"^revision is .*; expected a branch, tag or commit, or N"
    ):
        itmkit.load("me/mine", revision=revision)


def test_what_is_broken_on_the_hub_is_there(hub: Path, retriever: Retriever) -> None:
    """The error is of the file alone, not of a run that is missing."""
    retriever.push_to_hub("me/mine")
    (hub / "me/mine/model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"model.safetensors is not a whole file") as caught:
        itmkit.load("me/mine")
    assert "nor is there a run" not in str(caught.value)


def test_download_that_breaks(
    hub: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's attempts
    retriever.push_to_hub("me/mine")
    (hub / "me/mine").rename(hub / "me/unreliable")
    with pytest.raises(InputError, match="path_or_name is 'me/unreliable'; expected a model on t"):
        itmkit.load("me/unreliable")


def no_token(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")
    patch.setattr(constants, "HF_TOKEN_PATH", "/no/such")


def no_network(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


REFUSED: dict[str, tuple[Callable[[pytest.MonkeyPatch], Any], dict[str, Any], str]] = {
    "no token": (
        no_token,
        {},
        r"token is None, and none is stored; expected one .*`hf auth login`",
    ),
    "wrong token": (lambda patch: None, {"token": "hf_other"}, "'me/mine'; the hub says: .*401"),
    "no network": (no_network, {}, r"'me/mine', but http://127\.0\.0\.1:9 cannot be reached"),
    "name": (lambda patch: None, {"repo_id": "mine"}, "repo_id is 'mine'; expected 'user/name'"),
    "wrong name": (lambda patch: None, {"repo_id": "me/a b"}, "'me/a b'; expected 'user/name'"),
    "of others": (lambda patch: None, {"repo_id": "you/mine"}, "'you/mine'; the hub says: .*403"),
    "private": (
        lambda patch: None,
        {"private": "false"},
        "private is 'false'; expected True, False or None",
    ),
    "licence": (lambda patch: None, {"licence": "The MIT"}, "licence is 'The MIT'; expected an"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    case: str, hub: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, options, message = REFUSED[case]
    change(monkeypatch)
    with pytest.raises(InputError, match=message) as caught:
        retriever.push_to_hub(**({"repo_id": "me/mine"} | options))
    assert "\n" not in str(caught.value)
    assert not list(hub.glob("*/*"))


def test_licence_that_the_hub_does_not_know(
    hub: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which checks the card before
    with pytest.raises(InputError, match=r"'me/mine'; the hub says: Invalid metadata in README"):
        retriever.push_to_hub("me/mine", licence="refused")
    assert [path.name for path in (hub / "me/mine").iterdir()] == [".gitattributes"]
    assert retriever.facts.licence is None  # it is not kept for the next time


def test_connection_that_breaks(
    hub: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which tries again and again
    with pytest.raises(InputError, match=r"'me/unreliable'; the hub says: .*disconnected"):
        retriever.push_to_hub("me/unreliable")


def test_repository_of_something_else(hub: Path, retriever: Retriever) -> None:
    save_clip(hub / "me/clip")
    before = {path.name for path in (hub / "me/clip").iterdir()}
    with pytest.raises(
        InputError, match=r"'me/clip', which holds other files, such as 'config\.json"
    ):
        retriever.push_to_hub("me/clip")
    assert {path.name for path in (hub / "me/clip").iterdir()} == before
