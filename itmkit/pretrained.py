"""Pretrained models by name: what is fetched, what a checkpoint brings, and the error without a
network.
"""

from __future__ import annotations

import os
import re
import string
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from itmkit.checks import InputError

SECONDS = 5.0  # that the hub is waited for


class ModelNotFoundError(InputError):
    """There is no model of a name: not on this machine, and not on the hub if that is reached."""


class Source(NamedTuple):
    """What a checkpoint stores of a part that was made by name, so that it can be made without it.

    Parts have it, or None, as ``pretrained_source``.

    Args:
        kind: of the library and the part.
        name: that the part was made by.
        content: numbers, strings, lists and dictionaries.
    """

    kind: str
    name: str
    content: Any


_stored: ContextVar[Mapping[str, Mapping[str, Any]] | None] = ContextVar("stored", default=None)
_token: ContextVar[str | None] = ContextVar("token", default=None)
_reached: list[bool] = []
_fetching = threading.RLock()  # what fetching sets, the libraries keep in globals of theirs


@contextmanager
def weights_follow(stored: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[None]:
    """Within it, models are built without their pretrained weights: a checkpoint brings all.

    Args:
        stored: the ``pretrained`` of that checkpoint (:func:`sources`); what it lacks is fetched, a
            configuration and no weights.
    """
    token = _stored.set(stored or {})
    try:
        yield
    finally:
        _stored.reset(token)


def following_weights() -> bool:
    """Whether this is within :func:`weights_follow`."""
    return _stored.get() is not None


def stored_content(kind: str, name: str) -> Any:
    """The content of a :class:`Source` in the checkpoint that follows, or None."""
    return ((_stored.get() or {}).get(kind) or {}).get(name)


def sources(*parts: Any) -> dict[str, dict[str, Any]]:
    """The contents of the sources of some parts, by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        source = getattr(part, "pretrained_source", None)
        if isinstance(source, Source):
            found.setdefault(source.kind, {})[source.name] = source.content
    return found


def check_token(token: object) -> None:
    """Raise unless this can be a token of the hub, or is None. The error does not show it."""
    if token is None:
        return
    if not isinstance(token, str):
        what = f"is of type {type(token).__name__}"
    elif not token.strip():
        what = "is empty"
    elif not token.isascii() or not token.isprintable() or " " in token:
        what = "holds white space, such as the end of a line, or what is not ASCII"
    else:
        return
    raise InputError(f"token {what}; expected a token of the hub, or None")


@contextmanager
def using_token(token: str | None) -> Iterator[None]:
    """Within it, the hub is asked with this token; None: with the one that is stored, if any."""
    check_token(token)
    before = _token.set(token)
    try:
        yield
    finally:
        _token.reset(before)


def hub_token() -> str | None:
    """What every call of the hub gets as its ``token``; see :func:`using_token`."""
    return _token.get()


@contextmanager
def fetching(
    option: str, name: str, *, weights_of: str | None = None, revision: str | None = None
) -> Iterator[None]:
    """Within it, a name may be fetched from the hub; where that cannot be reached, from its cache.

    Without a network the libraries would try for minutes. One thread at a time is within it.

    Args:
        option: argument that the name is of.
        name: of a model on the hub, or a local folder.
        weights_of: the model on the hub whose weights are fetched: their size and licence are
            printed to stderr before, unless they are in the cache.
        revision: of those weights; None: the newest.

    Raises:
        ModelNotFoundError: with ``option`` and ``name``, if the libraries do not find it.
    """
    from huggingface_hub import constants

    local = os.path.exists(name)
    with _fetching:
        online = local or hub_is_reached()
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not online
        try:
            if weights_of is not None and online and not local:
                _announce(weights_of, revision)
            yield
        except InputError:
            raise
        except (client_error(), OSError, ValueError) as error:
            if not online:
                raise ModelNotFoundError(
                    f"{option} is {name!r}, which is not on this machine, and {constants.ENDPOINT} "
                    "cannot be reached; expected a local folder, a model in the cache, or a network"
                ) from error
            reason = " ".join(str(error).split())
            raise ModelNotFoundError(
                f"{option} is {name!r}; expected a model on the hub or a local folder: {reason}"
            ) from error
        finally:
            constants.HF_HUB_OFFLINE = before


def client_error() -> type[Exception]:
    """What a connection raises that breaks: of httpx or httpx2, as huggingface_hub has it."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception))
    return next(kind for kind in bases if kind.__name__ == "HTTPError")


def fetch_tokenizer(key: str, name_or_path: str) -> Any:
    """The transformers tokenizer of a model; of a checkpoint that follows, if that holds it.

    Args:
        key: name that a checkpoint has it under.
        name_or_path: of a model on the hub, or a local folder.

    Raises:
        InputError: if there is none.
    """
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    content = stored_content("tokenizer", key)
    if content is not None:
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(content["tokenizer"]),
            extra_special_tokens=content["extra"],
            **content["special"],
        )
    with fetching("name_or_path", name_or_path):
        try:
            config, _ = PreTrainedConfig.get_config_dict(name_or_path, token=hub_token())
            kind = config.get("model_type")
        except OSError:  # a folder of a tokenizer alone
            kind = None
        siglip = kind in ("siglip", "siglip2")
        # The class of SigLIP's own is in Python and needs sentencepiece; its files have a fast one.
        auto = PreTrainedTokenizerFast if siglip else AutoTokenizer
        tokenizer = auto.from_pretrained(name_or_path, token=hub_token(), trust_remote_code=False)
    if siglip:  # trained on lower case, which SigLIP 2's tokenizer leaves to its user
        steps: list[Any] = [normalizers.Lowercase()]
        own = get_tokenizer_config(name_or_path, token=hub_token())
        if own.get("tokenizer_class") == "SiglipTokenizer":
            punctuation = normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")
            spaces = normalizers.Replace(Regex(r"\s+"), " ")
            steps += [punctuation, spaces, normalizers.Strip()]
        pieces = tokenizer.backend_tokenizer
        pieces.normalizer = normalizers.Sequence([*steps, *filter(None, [pieces.normalizer])])
    return tokenizer


_WEIGHTS = re.compile(r"(model|pytorch_model|open_clip_model)[-\w]*\.(safetensors|bin)")


def _announce(name: str, revision: str | None) -> None:
    """Print how large the weights of a model are and their licence, unless they are in the cache.

    Raises:
        OSError: there is no such model on the hub.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    hub = HfApi(endpoint=constants.ENDPOINT, token=hub_token())
    info = hub.model_info(name, revision=revision, files_metadata=True)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or []
        if _WEIGHTS.fullmatch(file.rfilename)
    }
    of_tensors = {file: size for file, size in sizes.items() if file.endswith(".safetensors")}
    wanted = of_tensors or sizes  # transformers and timm prefer these
    in_cache = (try_to_load_from_cache(name, file, revision=info.sha) for file in wanted)
    if all(isinstance(path, str) for path in in_cache):
        return
    licence = info.card_data.license if info.card_data is not None else None
    print(
        f"downloading {name} from {constants.ENDPOINT}: {sum(wanted.values()) / 1e6:,.1f} MB, "
        f"licence {licence or 'not stated'}",
        file=sys.stderr,
        flush=True,
    )


def hub_is_reached() -> bool:
    """Whether the hub answers at all, in a thread: a name server may take longer than it should."""
    from huggingface_hub import constants, get_session

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
        except Exception:  # whatever the client of the day raises: there was no answer
            return
        _reached.append(True)

    if not _reached and not constants.HF_HUB_OFFLINE:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(SECONDS + 1)
    return bool(_reached)
