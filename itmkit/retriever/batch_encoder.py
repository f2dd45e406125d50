"""Vectors of pictures, batch by batch, for the data frameworks of clusters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from itmkit.checks import InputError
from itmkit.data.captions import leads_out
from itmkit.data.images import BadSampleError
from itmkit.data.photo import SUFFIXES
from itmkit.data.pictures import picture_pixels
from itmkit.files import check_folder, user_path
from itmkit.retriever.loading import load
from itmkit.retriever.retriever import Retriever

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs


def open_pictures(root: str | Path) -> fs.SubTreeFileSystem:
    """A folder of pictures as a file system of pyarrow, whose paths are those inside the folder.

    Args:
        root: a folder, or an address such as ``s3://bucket/photos``.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    from pyarrow import fs

    if "://" in str(root):
        store, base = fs.FileSystem.from_uri(str(root))
        return fs.SubTreeFileSystem(base, store)
    folder = user_path(root).resolve()
    check_folder("root", folder)
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())


def picture_names(pictures: fs.FileSystem) -> list[str]:
    """The pictures of a file system, by the endings of their names, sorted; no hidden ones.

    Names that are not UTF-8 are left out, with a warning.

    Raises:
        InputError: if there is none.
    """
    from pyarrow import fs

    found = pictures.get_file_info(fs.FileSelector("", recursive=True))
    names, unnamed = [], 0
    for one in found:
        try:
            path = PurePosixPath(one.path)
        except UnicodeDecodeError:
            unnamed += 1
            continue
        hidden = any(part.startswith(".") for part in path.parts)
        if one.type != fs.FileType.Directory and path.suffix.lower() in SUFFIXES and not hidden:
            names.append(one.path)
    if unnamed:
        warnings.warn(f"{unnamed} names that are not UTF-8 are left out", stacklevel=2)
    if not names:
        raise InputError(f"the folder has no picture; expected {' '.join(SUFFIXES)}")
    return sorted(names)


class BatchEncoder:
    """Adds vectors to tables of pictures, as a function of batches that processes can be sent.

    For ``Dataset.map_batches`` of Ray Data with ``batch_format="pyarrow"``, or any framework that
    maps tables of Arrow. Pickled, it is a few names: each process loads the model at its first
    batch.

    Args:
        model: what :func:`itmkit.load` takes; on a cluster, a folder that all machines see or the
            name of a model on the hub.
        root: folder of the pictures, or an address such as ``s3://bucket/photos``.
        device: where the model goes; None: a GPU if there is one.
        trust: see :func:`itmkit.load`.

    Raises:
        InputError: at the first batch, if the model makes no vectors (DAIM and TVRN without a
            ``global_branch``).

    Example:
        ``dataset.map_batches(BatchEncoder, fn_constructor_args=("mine", "photos/"),
        batch_format="pyarrow", batch_size=32, compute=ray.data.ActorPoolStrategy(size=2))``
    """

    def __init__(
        self,
        model: str | Path,
        root: str | Path,
        *,
        device: torch.device | str | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        self.model, self.root, self.device, self.trust = model, root, device, tuple(trust)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add the columns ``vector``, ``error`` and ``fingerprint`` to a table.

        Args:
            batch: with the pictures' paths inside ``root`` in the column ``path``.

        Returns:
            The same rows: ``vector`` is a list of ``D`` fp32; of a picture that cannot be read it
            is null, and ``error`` says why. ``fingerprint`` is the model's.

        Raises:
            InputError: if there is no column ``path``, or one of those that are added is there.
        """
        import pyarrow as pa

        if "path" not in batch.column_names:
            raise InputError(f"batch has the columns {batch.column_names}; expected 'path'")
        for name in ("vector", "error", "fingerprint"):
            if name in batch.column_names:
                raise InputError(f"batch has a column {name!r}, which is added; expected none")
        pixels, errors = [], []
        for name in batch["path"].to_pylist():
            found = self._pixels(name)
            errors.append(found if isinstance(found, str) else None)
            if not isinstance(found, str):
                pixels.append(found)
        vectors = np.zeros((len(errors), self.width), np.float32)
        readable = np.array([error is None for error in errors], dtype=bool)
        if pixels:
            encoding = self.retriever.encode_pixels(torch.stack(pixels))
            vectors[readable] = encoding.vector.float().numpy()
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), self.width, mask=pa.array(~readable)
        )
        fingerprints = [self.retriever.fingerprint] * len(errors)
        return (
            batch.append_column("vector", column)
            .append_column("error", pa.array(errors, pa.string()))
            .append_column("fingerprint", pa.array(fingerprints, pa.string()))
        )

    @cached_property
    def retriever(self) -> Retriever:
        """The model, loaded when first asked for."""
        return load(self.model, device=self.device, trust=self.trust)

    @cached_property
    def width(self) -> int:
        """Numbers of a vector.

        Raises:
            InputError: if the model makes none.
        """
        size = self.retriever.preprocessing.size
        blank = self.retriever.encode_pixels(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        fields = self.retriever.model.score_fields
        if blank.vector is None or fields != ("vector",):
            raise InputError(
                f"{type(self.retriever.model).__name__} does not compare pictures and sentences by "
                "one vector each; expected a model such as DualEncoder or MATE"
            )
        return int(blank.vector.shape[1])

    @cached_property
    def _pictures(self) -> fs.SubTreeFileSystem:
        return open_pictures(self.root)

    def _pixels(self, name: str | None) -> torch.Tensor | str:
        """Of one picture, or why there are none."""
        if not isinstance(name, str):
            return f"path is {name!r}; expected a string"
        if leads_out(name):
            return f"path is {name!r}; expected one inside {self.root}"
        try:
            with self._pictures.open_input_file(name) as file:
                content = file.read()
        except (OSError, ValueError) as error:
            return f"{name}: {error}"
        try:
            return picture_pixels(content, self.retriever.preprocessing, name=name)
        except BadSampleError as error:
            return str(error)

    def __getstate__(self) -> dict[str, Any]:
        names = ("model", "root", "device", "trust")
        return {name: self.__dict__[name] for name in names}
