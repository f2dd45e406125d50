"""What this machine has and can do, and what a configuration would read or download."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import itmkit
from itmkit.files import default_cache, user_path
from itmkit.lazy_imports import import_timm
from itmkit.machine import processor_name


def versions() -> Iterator[tuple[str, str]]:
    """Of Python and of each package that itmkit needs; what does not fit is named."""
    yield "python", platform.python_version()
    for requirement in _requirements(""):
        yield requirement.name, _state(requirement)


def extras() -> Iterator[tuple[str, str]]:
    """Each extra, and what it lacks."""
    for extra in metadata("itmkit").get_all("Provides-Extra") or []:
        needed = [one for one in _requirements(extra) if one.name != "itmkit"]
        lacking = [one.name for one in needed if _lacks(one)]
        if needed:
            fix = f"lacks {', '.join(lacking)}: pip install 'itmkit[{extra}]'"
            yield extra, fix if lacking else "installed"


def devices() -> Iterator[tuple[str, str]]:
    """The processor with how fast its half precision is, and each GPU."""
    import torch

    from itmkit.precision import SLOW, cpu_slowdown

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield "cpu", f"{processor_name()}, {threads}"
    for dtype in (torch.bfloat16, torch.float16):
        ratio = cpu_slowdown(dtype)
        advice = ": slow, keep float32" if ratio > SLOW else ""
        name = str(dtype).removeprefix("torch.")
        yield (
            f"cpu, {name}",
            f"a Linear layer takes {ratio:.1f} times as long as in float32{advice}",
        )
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield f"cuda:{number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {half}"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"


def caches() -> Iterator[tuple[str, str]]:
    """Folders that models and features are kept in, and their sizes."""
    from huggingface_hub import constants

    for name, folder in {"hub": Path(constants.HF_HUB_CACHE), "features": default_cache()}.items():
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        size = sum(path.stat().st_size for path in files)
        yield name, f"{folder}: {size / 1e6:,.1f} MB"


#: arguments of which a value is a file or folder
_FILES = (
    "annotations captions images photos root features text_features checkpoint image_checkpoint "
    "cache ckpt_path init_from"
).split()
#: arguments of which a value is a model's name or folder
_MODELS = "name_or_path text_model".split()


def needs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a configuration would read or download, by the option that names it.

    Args:
        config: sections by name, as of :func:`itmkit.configs.load_config`.

    Yields:
        Options with what is there; nothing is downloaded, and no network is asked.

    Example:
        >>> dict(needs({"data": {"init_args": {"dataset": {"init_args": {"root": "no/such"}}}}}))
        {'data.dataset.root': 'no/such: missing'}
    """
    for place, value, beside in _values(config, ()):
        name = place.rpartition(".")[2]
        if name in _FILES and isinstance(value, str):
            folder = user_path(value.partition("{")[0])
            yield place, f"{value}: {'found' if folder.exists() else 'missing'}"
        elif name in _MODELS and isinstance(value, str):
            yield place, f"{value}: {_of_hub(value)}"
        elif name in ("model_name", "image_model") and isinstance(value, str):
            checkpoint = beside.get("checkpoint") or beside.get("image_checkpoint")
            if checkpoint is None and (name == "image_model" or beside.get("pretrained")):
                yield place, f"{value}: {_of_timm(value)}"


def _values(
    node: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    for name, value in node.items():
        place = above if name == "init_args" else (*above, str(name))
        if isinstance(value, Mapping):
            yield from _values(value, place)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value):  # such as callbacks
                yield from _values(one, (*above, f"{name}[{number}]"))
        else:
            yield ".".join(place), value, node


def _of_hub(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name and user_path(name).is_dir():
        return "local folder"
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return "neither a folder nor a name that the hub can have"
    return "in the cache" if cached else "not on this machine; would be downloaded from the hub"


def _of_timm(name: str) -> str:
    timm = import_timm()
    source, _, rest = name.rpartition(":")
    if source == "hf-hub":
        return _of_hub(rest)
    try:
        known = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    except RuntimeError as error:  # weights of the model that timm does not know
        return str(error)
    if known is None:
        return "no model that timm knows"
    return _of_hub(known.hf_hub_id) if known.hf_hub_id else "would be downloaded by timm"


def _requirements(extra: str) -> list[Requirement]:
    """The packages of an extra; those of no extra for an empty name."""
    found = []
    for one in map(Requirement, requires("itmkit") or []):
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        asked = one.marker is None or one.marker.evaluate({"extra": extra})
        if always if not extra else asked and not always:
            found.append(one)
    return found


def _lacks(requirement: Requirement) -> bool:
    try:
        return not requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return True


def _state(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"missing; expected {requirement.specifier}"
    return f"{found}; expected {requirement.specifier}" if _lacks(requirement) else found


def report(config: Mapping[str, Any] | None = None) -> str:
    """All of it as text.

    Args:
        config: a configuration, to say what it would read or download; None to leave that out.
    """
    parts = {
        f"itmkit {itmkit.__version__} ({Path(itmkit.__file__).parent})": versions(),
        "devices": devices(),
        "extras": extras(),
        "caches": caches(),
    }
    if config is not None:
        parts["the configuration reads"] = needs(config)
    lines = []
    for title, rows in parts.items():
        found = [f"  {name:28} {state}" for name, state in rows]
        lines += [title, *(found or ["  nothing"])]
    return "\n".join(lines)
