"""Features of regions as others store them, read image by image."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itmkit.checks import InputError
from itmkit.extras import require_extra

Array = np.ndarray[Any, Any]

#: Columns of the TSV files of bottom-up attention, which have no row of names.
BUTD_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
#: Names of what is in HDF5 and .npz files, the first that is there.
KEYS = {
    "features": ("features", "image_features", "feat", "x", "arr_0"),
    "boxes": ("boxes", "bbox", "image_bb"),
    "counts": ("counts", "num_boxes", "num_bbox"),
    "ranges": ("pos_boxes",),
    "names": ("ids", "image_ids", "image_id", "names"),
    "width": ("image_w", "width", "widths"),
    "height": ("image_h", "height", "heights"),
}


class ImageRegions(NamedTuple):
    """The regions of one image.

    Args:
        name: of the image, as the file has it.
        features: ``(N, D)``.
        boxes: ``(N, 4)`` corners ``x1, y1, x2, y2``, in pixels where there is a ``size``; or None.
        size: width and height of the image in pixels; or None.
        source: where it is, for an error.
    """

    name: str
    features: Array
    boxes: Array | None
    size: tuple[float, float] | None
    source: str


def read_regions(path: Path) -> Iterator[ImageRegions]:
    """The images of a file or folder, one after the other.

    Args:
        path: a TSV file of bottom-up attention (``.tsv``, ``.tsv.0`` …), an HDF5 file (``.h5``,
            ``.hdf5``), or a folder of ``.npy`` or ``.npz`` files, an image each.

    Raises:
        FileNotFoundError: if there is none.
        InputError: with the file and the row, if it is of the wrong form.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.suffix in (".h5", ".hdf5"):
        return _read_hdf5(path)
    if ".tsv" in path.suffixes:
        return _read_tsv(path)
    raise InputError(
        f"{path} ends in {path.suffix!r}; expected .tsv, .h5, .hdf5, .json, or a folder of .npy "
        "or .npz files"
    )


def _read_tsv(path: Path) -> Iterator[ImageRegions]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            source = f"{path}, line {number}"
            cells = line.rstrip(b"\r\n").split(b"\t")
            if len(cells) != len(BUTD_COLUMNS):
                raise InputError(
                    f"{source} has {len(cells)} cells; expected {len(BUTD_COLUMNS)}, "
                    f"{', '.join(BUTD_COLUMNS)}"
                )
            row = dict(zip(BUTD_COLUMNS, cells, strict=True))
            width, height, count = (
                _whole_number(row[name], name, source) for name in BUTD_COLUMNS[1:4]
            )
            features = _floats(row["features"], count, "features", source)
            boxes = _floats(row["boxes"], count, "boxes", source)
            name = row["image_id"].decode("utf-8", "replace").strip()
            yield ImageRegions(name, features, boxes, (width, height), source)


def _whole_number(cell: bytes, name: str, source: str) -> int:
    try:
        number = int(cell)
    except ValueError:
        number = 0
    if number < 1:
        found = cell.decode("utf-8", "replace")[:40]
        raise InputError(f"{source} has {found!r} in {name}; expected a number from 1 on")
    return number


def _floats(cell: bytes, count: int, name: str, source: str) -> Array:
    try:
        content = b64decode(cell, validate=True)
    except binascii.Error as error:
        raise InputError(f"{source} has {name} that are not base64: {error}") from error
    if not content or len(content) % (4 * count):
        raise InputError(
            f"{source} has {len(content)} bytes in {name}; expected float32 of {count} boxes"
        )
    return np.frombuffer(content, dtype="<f4").reshape(count, -1)


def _read_folder(folder: Path) -> Iterator[ImageRegions]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".npz"))
    if not paths:
        raise InputError(f"{folder} has no .npy or .npz files; expected one an image")
    for path in paths:
        try:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                found: dict[str, Any] = {"features": loaded}
            else:
                with loaded:
                    found = {what: loaded[key] for what, key in _keys(loaded, path).items()}
        except InputError:
            raise
        except Exception as error:  # a file that is not whole raises nearly anything
            raise InputError(f"{path} is not a whole file of numbers: {_line(error)}") from error
        yield _of_parts(path.stem, found, str(path))


def _read_hdf5(path: Path) -> Iterator[ImageRegions]:
    require_extra("hdf5", "h5py>=3.10")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if all(isinstance(own, h5py.Dataset) for own in file.values()) and (
                _keys(file, path, needed=False).get("features") is not None
            ):
                yield from _of_arrays(file, path)
            else:
                yield from _of_groups(file, path)
    except InputError:
        raise
    except Exception as error:  # a file that is not whole raises nearly anything
        raise InputError(f"{path} is not a whole HDF5 file: {_line(error)}") from error


def _of_groups(file: Any, path: Path) -> Iterator[ImageRegions]:
    """A group or an array an image."""
    for name, own in file.items():
        source = f"{path}, {name}"
        if hasattr(own, "keys"):
            found = {what: own[key][()] for what, key in _keys(own, source).items()}
        else:
            found = {"features": own[()]}
        yield _of_parts(name, found, source)


def _of_arrays(file: Any, path: Path) -> Iterator[ImageRegions]:
    """Arrays of all images: of as many regions each, or one behind the other."""
    keys = _keys(file, path)
    features = file[keys["features"]]
    small = {w: np.asarray(file[keys[w]][()]) for w in keys if w not in ("features", "boxes")}
    for what in small.keys() - {"names"}:
        _check_numbers(small[what], keys[what], str(path))
    ends: Array
    if features.ndim == 3:
        starts, ends = np.arange(len(features)), np.arange(1, len(features) + 1)
    elif "ranges" in small and small["ranges"].size % 2 == 0:
        starts, ends = small["ranges"].reshape(-1, 2).astype(np.int64).T
    elif "counts" in small:
        counts = small["counts"].ravel().astype(np.int64)
        ends = np.cumsum(counts)
        starts = ends - counts
    else:
        raise InputError(
            f"{path} has the shape {features.shape} in {keys['features']!r}; expected (images, "
            f"regions, dim), or one of {', '.join((*KEYS['ranges'], *KEYS['counts']))}"
        )
    if "names" not in small:
        raise InputError(f"{path} has {sorted(file)}; expected one of {', '.join(KEYS['names'])}")
    lengths = {what: len(starts) for what in ("names", "width", "height")}
    for what, rows in (lengths | {"boxes": len(features)}).items():
        found_rows = file[keys[what]].shape[:1] if what in keys else (rows,)
        if found_rows != (rows,):
            raise InputError(
                f"{path} has {found_rows[0] if found_rows else 'no'} rows in {keys[what]!r}; "
                f"expected {rows}"
            )
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        source = f"{path}, row {row + 1}"
        if not 0 <= start < end <= len(features):
            raise InputError(
                f"{source} has the regions {start} to {end}; expected some of {len(features)}"
            )
        span = start if features.ndim == 3 else slice(start, end)
        found: dict[str, Any] = {
            what: file[keys[what]][span] for what in ("features", "boxes") if what in keys
        }
        found |= {what: small[what][row] for what in ("width", "height") if what in small}
        name = small["names"][row]
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        yield _of_parts(text, found, source)


def _keys(names: Any, source: Path | str, *, needed: bool = True) -> dict[str, str]:
    """Under which name of a file each of :data:`KEYS` is."""
    there = list(names)
    found = {what: next((k for k in usual if k in there), None) for what, usual in KEYS.items()}
    if found["features"] is None and needed:
        raise InputError(
            f"{source} has {', '.join(map(repr, there))[:80]}; expected one of "
            f"{', '.join(KEYS['features'])}"
        )
    return {what: key for what, key in found.items() if key is not None}


def _of_parts(name: str, found: Mapping[str, Any], source: str) -> ImageRegions:
    features = np.asarray(found["features"])
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.size:
        raise InputError(
            f"{source} has {features.dtype} of the shape {features.shape}; expected numbers "
            "(regions, dim)"
        )
    numbers = {
        what: _first_number(found[what], what, source)
        for what in ("counts", "width", "height")
        if what in found
    }
    count = numbers.get("counts", len(features))
    if count != len(features):
        if count != features.shape[1]:
            raise InputError(f"{source} has the shape {features.shape} and {count:g} boxes")
        features = features.T  # (dim, regions), as some write it
    boxes = None if found.get("boxes") is None else np.asarray(found["boxes"])
    if boxes is not None:
        _check_numbers(boxes, "boxes", source)
        boxes = boxes[:, :4] if boxes.ndim == 2 else boxes
    size = None
    if "width" in numbers and "height" in numbers:
        size = numbers["width"], numbers["height"]
    return ImageRegions(name, features, boxes, size, source)


def _first_number(value: Any, name: str, source: str) -> float:
    """One number above zero, in an array of any shape."""
    numbers = np.asarray(value)
    _check_numbers(numbers, name, source)
    if not 0 < numbers.flat[0] < np.inf:
        raise InputError(f"{source} has {numbers.flat[0]} in {name}; expected a number above 0")
    return float(numbers.flat[0])


def _check_numbers(numbers: Array, name: str, source: str) -> None:
    if numbers.dtype.kind not in "fiu" or not numbers.size:
        raise InputError(
            f"{source} has {numbers.dtype} of the shape {numbers.shape} in {name}; expected numbers"
        )


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
