"""Pictures written as files, into tar and Parquet files, and as datasets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Pictures = Mapping[str, bytes]


def jpegs(count: int, size: tuple[int, int] = (40, 32)) -> dict[str, bytes]:
    """Different JPEGs by name: p0.jpg …"""
    found = {}
    for row in range(count):
        noise = np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize(size).save(file, "JPEG")
        found[f"p{row}.jpg"] = file.getvalue()
    return found


def write_folder(folder: Path, pictures: Pictures) -> Path:
    for name, content in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, files: Iterable[tuple[str, Any]]) -> Path:
    """Names with what is in the files; what is neither bytes nor text is written as JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            if not isinstance(content, (bytes, str)):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], **options: Any) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(dict(columns)), path, **options)
    return path


def as_structs(pictures: Pictures) -> list[dict[str, Any]]:
    """Pictures as Hugging Face stores them."""
    return [{"bytes": content, "path": name} for name, content in pictures.items()]
