"""Features and captions in the layouts of others, written in ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from itmkit.checks import InputError, check_choice
from itmkit.data.captions import check_name, check_unique, clean_sentence
from itmkit.data.extract import write_captions
from itmkit.data.karpathy import karpathy_captions
from itmkit.data.region_readers import Array, ImageRegions, read_regions
from itmkit.files import atomic_write, read_json, sole_writer_beside, user_path, write_text

_FILES = ("ims", "counts", "boxes", "img_sizes", "iou")  # that make up the features of a split
_HEADER = 256  # bytes that the header of a .npy file gets, before its shape is known


class Converted(NamedTuple):
    """What was written of a split."""

    split: str
    path: Path
    images: int
    regions: tuple[int, int]  # fewest and most of an image


def convert_features(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> list[Converted]:
    """Write features of regions in the layout that :class:`PrecompDataset` reads.

    The sources are read image by image. The files get their names only when all is done; where a
    row is wrong, nothing is left.

    Args:
        sources: files of bottom-up attention (TSV), HDF5 files, or folders of ``.npy`` or ``.npz``
            files, see :func:`read_regions`; several are parts of one.
        output: folder to write to, made where missing.
        split: that is written; None: all of ``annotations``, or ``"train"``.
        annotations: Karpathy's ``dataset_*.json``: an image gets its file name and its captions,
            and belongs to its split; images are found by ``cocoid``, file name or ``imgid``. Those
            that are not in it are left out. None: names are those of the sources, without captions.
        dtype: of the numbers on disk.

    Returns:
        For every split what was written.

    Raises:
        FileNotFoundError: if a file is missing.
        InputError: with the file and the row, if one is of the wrong form, or a file is there.
    """
    check_choice("dtype", dtype, ("float16", "float32"))
    folder = user_path(output)
    known = None if annotations is None else _Annotations(user_path(annotations), split)
    writers: dict[str, _SplitWriter] = {}
    digests: dict[str, bytes] = {}
    with ExitStack() as stack:
        stack.enter_context(sole_writer_beside(folder))
        for own in (split or "train",) if known is None else known.splits:
            for ending in _FILES:
                _check_new(folder / f"{own}_{ending}.npy")
        for source in sources:
            for image in read_regions(user_path(source)):
                content = blake2b(image.features.tobytes(), digest_size=16).digest()
                if digests.setdefault(image.name, content) != content:
                    raise InputError(
                        f"{image.source} has the image {image.name!r} again, with other features"
                    )
                place = (image.name, split or "train") if known is None else known.find(image.name)
                if place is None:
                    continue
                name, of_split = place
                check_name(name, image.source)
                if of_split not in writers:
                    writers[of_split] = _SplitWriter(stack, folder, of_split, dtype)
                if name not in writers[of_split].names:
                    writers[of_split].write(name, image)
        if known is not None:
            known.check_all(writers)
        if not writers:
            raise InputError(f"{sources[0]} has no image" + (" of annotations" if known else ""))
        return [
            writer.finish(None if known is None else known.captions) for writer in writers.values()
        ]


def _check_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} is there already; choose another output, or delete it")


class _SplitWriter:
    """The files of a split, which get their names when ``stack`` is closed without an error."""

    def __init__(self, stack: ExitStack, folder: Path, split: str, dtype: str) -> None:
        self.folder, self.split, self.dtype = folder, split, np.dtype(dtype)
        self.names: dict[str, int] = {}  # with the number of regions
        self._stack = stack
        self._dim = 0
        self._features = self._open("ims.npy")
        self._boxes: IO[bytes] | None = None

    def write(self, name: str, image: ImageRegions) -> None:
        """Append an image."""
        count, dim = image.features.shape
        if not self.names:
            self._dim = dim
            if image.boxes is not None:
                self._boxes = self._open("boxes.npy")
        if dim != self._dim:
            raise InputError(
                f"{image.source} has features of the width {dim}; expected {self._dim}"
            )
        if (image.boxes is None) != (self._boxes is None):
            raise InputError(
                f"{image.source}: {'no' if image.boxes is None else 'has'} boxes, "
                "unlike the images before; expected all or none"
            )
        with np.errstate(over="ignore"):
            features = image.features.astype(self.dtype)
        if not np.isfinite(features).all():
            raise InputError(f"{image.source} has features that are not finite in {self.dtype}")
        self._features.write(features.tobytes())
        if self._boxes is not None:
            self._boxes.write(_relative_boxes(image).tobytes())
        self.names[name] = count

    def finish(self, captions: Mapping[str, Sequence[str]] | None) -> Converted:
        """Write what goes before and beside the features."""
        counts = np.array(list(self.names.values()), dtype=np.int64)
        total = int(counts.sum())
        equal = bool((counts == counts[0]).all())
        shape = (len(counts), int(counts[0])) if equal else (total,)
        _write_header(self._features, (*shape, self._dim), self.dtype)
        if self._boxes is not None:
            _write_header(self._boxes, (*shape, 4), np.dtype(np.float32))
        if not equal:
            np.save(self._open("counts.npy"), counts)
        groups = [list((captions or {}).get(name, ())) for name in self.names]
        write_captions(self.folder, self.split, list(self.names), groups)
        notes = {"captions": sum(map(len, groups)), "grid": None, "preprocessing": None}
        write_text(self.folder / f"{self.split}_features.json", json.dumps(notes) + "\n")
        path = self.folder / f"{self.split}_ims.npy"
        return Converted(self.split, path, len(counts), (int(counts.min()), int(counts.max())))

    def _open(self, ending: str) -> IO[bytes]:
        path = self.folder / f"{self.split}_{ending}"
        file = self._stack.enter_context(atomic_write(path))
        if ending != "counts.npy":
            file.write(bytes(_HEADER))
        return file


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the header of a ``.npy`` file in the place that was left for it."""
    header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    file.seek(0)
    file.write(start + repr(header).encode("ascii").ljust(_HEADER - 11) + b"\n")
    file.seek(0, os.SEEK_END)


def _relative_boxes(image: ImageRegions) -> Array:
    """The boxes of an image in [0, 1]; what is outside by at most a hundredth is cut off."""
    assert image.boxes is not None
    boxes = image.boxes.astype(np.float64)
    if boxes.shape != (len(image.features), 4):
        raise InputError(
            f"{image.source} has boxes of the shape {boxes.shape}; expected "
            f"({len(image.features)}, 4)"
        )
    of = ""
    if image.size is not None:
        boxes /= np.array(image.size * 2)
        of = f", pixels of {image.size[0]:g} × {image.size[1]:g}"
    if not (boxes >= -0.01).all() or not (boxes <= 1.01).all():
        first = image.boxes[int((~((boxes >= -0.01) & (boxes <= 1.01))).any(1).argmax())].tolist()
        raise InputError(
            f"{image.source} has the box {first}{of}; expected x1, y1, x2, y2 inside the image"
            + ("" if of else ", in [0, 1] where its width and height are not there")
        )
    turned = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if turned.any():
        first = image.boxes[int(turned.argmax())].tolist()
        raise InputError(f"{image.source} has the box {first}; expected x1, y1, x2, y2")
    relative: Array = boxes.clip(0, 1).astype("<f4")
    return relative


class _Annotations:
    """Names, splits and captions of images in Karpathy's form, by what others call the images."""

    def __init__(self, path: Path, split: str | None) -> None:
        self.path = path
        try:
            entries = read_json(path)["images"]
            splits = dict.fromkeys(
                "train" if e["split"] == "restval" else e["split"] for e in entries
            )
        except (LookupError, TypeError) as error:
            raise InputError(f"{path} is not in Karpathy's form: {error!r}") from error
        self.captions: dict[str, list[str]] = {}
        self._splits: dict[str, str] = {}
        self.splits = [split] if split else list(splits)
        for own in self.splits:
            found = karpathy_captions(own, path, max_captions=None, require_captions=False)
            for row, name in enumerate(found.names):
                self.captions[name] = [found.sentences[i] for i in found.rows_of(row)]
                self._splits[name] = own
        self._names: dict[str, dict[str, str]] = {kind: {} for kind in _CALLED}
        for entry in entries:
            name = str(PurePosixPath(entry.get("filepath", ""), entry["filename"]))
            for kind, called in _CALLED.items():
                key = called(entry)
                if key is not None and name in self._splits:
                    self._names[kind].setdefault(_plain_id(key), name)
        self._kind: str | None = None

    def find(self, image: str) -> tuple[str, str] | None:
        """Name and split of an image, by the kind of id of the first one; None if not there."""
        key = _plain_id(image)
        if self._kind is None:
            self._kind = next((kind for kind, names in self._names.items() if key in names), None)
        name = None if self._kind is None else self._names[self._kind].get(key)
        return None if name is None else (name, self._splits[name])

    def check_all(self, writers: Mapping[str, _SplitWriter]) -> None:
        """Raise unless every image of the splits that are written has features."""
        for split, writer in writers.items():
            names = [name for name, own in self._splits.items() if own == split]
            missing = [name for name in names if name not in writer.names]
            if missing:
                raise InputError(
                    f"the sources lack {missing[0]!r}, in all {len(missing)} of the {len(names)} "
                    f"images of the split {split!r} in {self.path}"
                )


#: what others call an image of Karpathy's annotations
_CALLED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cocoid": lambda entry: entry.get("cocoid"),
    "filename": lambda entry: entry["filename"],
    "stem": lambda entry: PurePosixPath(entry["filename"]).stem,
    "imgid": lambda entry: entry.get("imgid"),
}


def _plain_id(name: Any) -> str:
    """A name or number as they are compared: without zeros before a number."""
    text = str(name).strip()
    return text.lstrip("0") or "0" if text.isdecimal() else text


def convert_captions(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    splits: Sequence[str],
    folders: Sequence[str] = (),
) -> dict[str, tuple[int, int]]:
    """Write COCO's official captions (``captions_val2017.json``) in Karpathy's form.

    Args:
        sources: JSON files with ``images`` and ``annotations``.
        output: JSON file, which :class:`KarpathyDataset` reads.
        splits: name of the split of each source.
        folders: folder of the photos of each source, inside that of all photos; none where empty.

    Returns:
        For every split how many images and captions it has.

    Raises:
        FileNotFoundError: if a source is missing.
        InputError: with the file and the entry, if one is of the wrong form; if there is an output.
    """
    path = user_path(output)
    for name, given in (("splits", splits), ("folders", folders)):
        if len(given) != len(sources) and (given or name == "splits"):
            raise InputError(
                f"{name} has {len(given)} names; expected {len(sources)}, one a source"
            )
    with sole_writer_beside(path):
        _check_new(path)
        return _write_captions(sources, path, splits, folders)


def _write_captions(
    sources: Sequence[str | Path], path: Path, splits: Sequence[str], folders: Sequence[str]
) -> dict[str, tuple[int, int]]:
    entries: list[dict[str, Any]] = []
    found: dict[str, tuple[int, int]] = {}
    for row, (source, split) in enumerate(zip(sources, splits, strict=True)):
        own = _coco_entries(user_path(source), split, folders[row] if folders else "")
        entries += own
        images, captions = found.get(split, (0, 0))
        captions += sum(len(entry["sentences"]) for entry in own)
        found[split] = images + len(own), captions
    names = [str(PurePosixPath(e.get("filepath", ""), e["filename"])) for e in entries]
    check_unique(names, user_path(sources[-1]))
    write_text(path, json.dumps({"dataset": "coco", "images": entries}, ensure_ascii=False))
    return found


def _coco_entries(path: Path, split: str, folder: str) -> list[dict[str, Any]]:
    content = read_json(path)
    images: dict[Any, dict[str, Any]] = {}
    where = ""
    try:
        for row, image in enumerate(content["images"]):
            where = f"images[{row}]"
            if image["id"] in images:
                raise InputError(f"{path} has the id {image['id']} of {where} twice")
            check_name(image["file_name"], f"{path}, {where}")
            images[image["id"]] = {
                **({"filepath": folder} if folder else {}),
                "filename": image["file_name"],
                "cocoid": image["id"],
                "split": split,
                "sentences": [],
            }
        for row, annotation in enumerate(content["annotations"]):
            where = f"annotations[{row}]"
            text = clean_sentence(annotation["caption"])
            if not text:
                raise InputError(f"{path} has an empty caption in {where}; expected a text")
            if annotation["image_id"] not in images:
                raise InputError(
                    f"{path} has no image {annotation['image_id']!r}, which {where} is of"
                )
            images[annotation["image_id"]]["sentences"].append({"raw": text})
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not in COCO's form ({error!r} in {where or 'the file'}); expected "
            "images[] with id and file_name, and annotations[] with image_id and caption"
        ) from error
    if not images:
        raise InputError(f"{path} has no images; expected one or more")
    return list(images.values())
