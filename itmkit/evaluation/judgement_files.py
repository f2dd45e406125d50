"""Judgements from the files of Crisscrossed Captions and ECCV Caption, for MS-COCO."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from itmkit.checks import InputError, check_choice, did_you_mean
from itmkit.data import ImageTextDataset, ShapesDataset
from itmkit.data.table import read_table
from itmkit.files import read_json, user_path
from itmkit.metrics import Judgements, Protocol
from itmkit.metrics.protocol import find_protocol

NAMES = ("cxc", "eccv")
CXC_LEAST = 3.0  # the least rating of a pair that matches, of 0 to 5
_ASPECTS = ("image_to_caption", "caption_to_image")
_MOST_MISSING = 0.01  # share of the judged captions: the sixth and seventh of some images


def read_judgements(
    name: str, dataset: ImageTextDataset, files: Sequence[str | Path] | str | Path | None = None
) -> Judgements:
    """Read which captions match which images of MS-COCO's test split of 5,000 images.

    ``cxc``, Crisscrossed Captions (Parekh et al., EACL 2021): ratings of people from 0 to 5, of
    which 3 and more match; the rating is the grade. All images are queries, and all captions that
    match an image: 28 of 25,000 do not, their own image included.

    ``eccv``, ECCV Caption (Chun et al., ECCV 2022): pairs that models found and people judged, for
    1,261 images and 1,332 captions, which are the queries; all 5,000 images and 25,000 captions are
    searched. No grades.

    The images of the dataset are known by the number at the end of their names, such as
    ``COCO_val2014_000000391895.jpg``, and its captions by ``sentence_ids``, as
    :class:`~itmkit.data.KarpathyDataset` has them. Otherwise ``files`` has to hold Karpathy's
    ``dataset_coco.json`` too, in which captions are looked up by their words.

    Args:
        name: ``cxc`` or ``eccv``.
        dataset: the split.
        files: for ``cxc``: ``sits_test.csv`` of Crisscrossed Captions, or
            ``cxc_image_to_caption.json`` and ``cxc_caption_to_image.json`` of the package
            ``eccv_caption`` (no grades); for ``eccv``: ``eccv_image_to_caption.json`` and
            ``eccv_caption_to_image.json`` of it; or a folder that holds these. None: those of the
            package, where it is installed (``pip install 'itmkit[eccv]'``).

    Raises:
        FileNotFoundError: a file is missing.
        InputError: an unknown name, a file of another form, files that do not belong together, or
            that judge images or captions that the dataset does not have.
    """
    check_choice("protocol", name, NAMES)
    paths = _found(name, files)
    coco = [path for path in paths if path.suffix == ".json" and not _lists_ids(path)]
    judged = [path for path in paths if path not in coco]
    image_rows, caption_rows = _rows_of_coco_ids(dataset, coco)
    tables = [path for path in judged if path.suffix == ".csv"]
    if tables:
        if name != "cxc" or len(judged) > len(tables):
            raise InputError(
                f"protocol_files has {tables[0].name} for {name}; expected sits_test.csv alone for "
                "cxc, or two JSON files"
            )
        ratings = _ratings(tables)
        queries: list[set[int] | None] = [None, None]
    else:
        ratings, queries = _both_aspects(name, judged)
    rows = {}
    missing: set[int] = set()
    source = judged[0]
    for (image, caption), grade in ratings.items():
        if image not in image_rows:
            raise InputError(
                f"{source} judges the image {image}, which the split {dataset.split!r} does not "
                "have; expected the 5,000 images of MS-COCO's test split"
            )
        if caption in caption_rows:
            rows[image_rows[image], caption_rows[caption]] = grade
        else:
            missing.add(caption)
    every = len({caption for _, caption in ratings})
    if len(missing) > _MOST_MISSING * every:
        raise InputError(
            f"{source} judges {every} captions, of which the split {dataset.split!r} does not have "
            f"{len(missing)}, such as {min(missing)}; expected MS-COCO's test split"
        )
    known = (image_rows, caption_rows)
    chosen = [
        None if own is None else torch.tensor([rows[one] for one in sorted(own) if one in rows])
        for own, rows in zip(queries, known, strict=True)
    ]
    grades = torch.tensor(list(rows.values()), dtype=torch.float64)
    return Judgements(torch.tensor(list(rows)), grades if tables else None, *chosen)


def check_protocol(
    protocol: Protocol | str | int,
    split: ImageTextDataset,
    files: Sequence[str | Path] | str | Path | None = None,
) -> Judgements | None:
    """Raise before anything is encoded if a split does not fit a protocol.

    Args:
        protocol: the protocol.
        split: that is evaluated.
        files: of its judgements.

    Returns:
        The judgements of the protocol, if it has some.
    """
    found = find_protocol(protocol)
    try:
        found.split(torch.arange(len(split)), split.caption_images)
    except InputError as error:
        raise InputError(f"protocol is {protocol!r}, the split {split.split!r}: {error}") from error
    if found.probes and not isinstance(split, ShapesDataset):
        raise InputError(
            f"protocol is {protocol!r} and the dataset a {type(split).__name__}; expected a "
            "ShapesDataset, whose scenes are known"
        )
    return None if found.judgements is None else read_judgements(found.judgements, split, files)


def _found(name: str, files: Sequence[str | Path] | str | Path | None) -> list[Path]:
    """The files, those of folders and of the package by their names."""
    usual = _usual_names(name)
    if files is None:
        package = find_spec("eccv_caption")
        if package is None or not package.submodule_search_locations:
            raise InputError(
                f"protocol_files is null for the protocol {name!r}; expected its files, or the "
                "package that holds them: pip install 'itmkit[eccv]'"
            )
        files = [Path(package.submodule_search_locations[0]) / "data"]
    found: list[Path] = []
    for path in map(user_path, [files] if isinstance(files, (str, Path)) else files):
        if path.is_dir():
            table = path / "sits_test.csv"
            here = [table] if name == "cxc" and table.is_file() else [path / one for one in usual]
            found += here
        else:
            found.append(path)
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; expected a file of the protocol {name!r}")
        if path.suffix not in (".csv", ".json"):
            raise InputError(f"protocol_files has {path}; expected files in .csv or .json")
    if not any(path.suffix == ".csv" or _lists_ids(path) for path in found):
        raise InputError(
            f"protocol_files has no judgements of {name!r}; expected {' and '.join(usual)}"
            f"{', or sits_test.csv' if name == 'cxc' else ''}"
        )
    return found


def _usual_names(name: str) -> list[str]:
    """The names of the two JSON files of a protocol: captions of images, images of captions."""
    return [f"{name}_{aspect}.json" for aspect in _ASPECTS]


def _lists_ids(path: Path) -> bool:
    """Whether a file is one of the two of some protocol."""
    return any(aspect in path.name for aspect in _ASPECTS)


def _ratings(paths: Sequence[Path]) -> dict[tuple[int, int], float]:
    """Ratings of the pairs that match, by the ids of image and caption."""
    found: dict[tuple[int, int], float] = {}
    for path in paths:
        table = read_table(path)
        names = [table.needed("", None, [name]) for name in ("image", "caption", "agg_score")]
        columns = (table.columns[name] for name in names)
        for row, (image, caption, score) in enumerate(zip(*columns, strict=True)):
            ids = _number_in(Path(image).stem), _number_in(caption)
            try:
                rating = float(score)
            except ValueError:
                rating = -1.0
            if ids[0] is None or ids[1] is None or not 0 <= rating <= 5:
                raise InputError(
                    f"{table.at(row)} is {caption!r}, {image!r}, {score!r}; expected such as "
                    "'COCO_val2014:sentid:732091', 'COCO_val2014_000000365325.jpg', '2.2'"
                )
            if rating >= CXC_LEAST:
                pair = (ids[0], ids[1])
                found[pair] = max(rating, found.get(pair, 0.0))
    if not found:
        raise InputError(
            f"{', '.join(map(str, paths))} has no rating of {CXC_LEAST:g} or more; expected "
            "ratings from 0 to 5, of which those match"
        )
    return found


def _both_aspects(
    name: str, paths: Sequence[Path]
) -> tuple[dict[tuple[int, int], float], list[set[int] | None]]:
    """Pairs of two JSON files, and the queries: the ids that they are listed by."""
    usual = _usual_names(name)
    if sorted(path.name for path in paths) != sorted(usual):
        raise InputError(
            f"protocol_files has {', '.join(path.name for path in paths)} for {name}; expected "
            f"{' and '.join(usual)}"
        )
    pairs: dict[tuple[int, int], float] = {}
    queries: list[set[int] | None] = [None, None]
    for path in paths:
        turned = path.name == usual[1]
        content = _lists_of_ids(path)
        for query, items in content.items():
            for item in items:
                pairs[(item, query) if turned else (query, item)] = 1.0
        queries[int(turned)] = {query for query, items in content.items() if items}
    return pairs, queries


def _lists_of_ids(path: Path) -> dict[int, list[int]]:
    """The items that match each query, of a file of ECCV Caption."""
    content = read_json(path)
    expected = 'expected ids with lists of ids, such as {"391895": [770337, 771687]}'
    if not isinstance(content, dict) or not any(content.values()):
        raise InputError(f"{path} holds no lists of ids; {expected}")
    for query, items in content.items():
        ids = items if isinstance(items, list) else [None]
        if str(_number_in(query)) != query or not all(type(item) is int for item in ids):
            raise InputError(f"{path} has {query[:40]!r}: {str(items)[:40]}; {expected}")
    return {int(query): items for query, items in content.items()}


def _rows_of_coco_ids(
    dataset: ImageTextDataset, coco: Sequence[Path]
) -> tuple[dict[int, int], dict[int, int]]:
    """Rows of images and captions by COCO's ids."""
    if coco:
        images, captions = _looked_up(dataset, coco[0])
    else:
        numbers = [_number_in(Path(name).stem) for name in dataset.names]
        if dataset.sentence_ids is None or None in numbers:
            raise InputError(
                f"the split {dataset.split!r} does not know the ids of its captions in MS-COCO; "
                "expected dataset_coco.json among protocol_files"
            )
        images, captions = [int(one or 0) for one in numbers], dataset.sentence_ids
    return (
        {one: row for row, one in enumerate(images)},
        {one: row for row, one in enumerate(captions)},
    )


def _looked_up(dataset: ImageTextDataset, path: Path) -> tuple[list[int], list[int]]:
    """COCO's ids of images and captions: by file names, or else by order; captions by words."""
    try:
        entries: list[dict[str, Any]] = read_json(path)["images"]
        by_name = {entry["filename"]: entry for entry in entries}
        own = [by_name[file] for file in (Path(n).name for n in dataset.names) if file in by_name]
        if len(own) < len(dataset):
            splits: dict[str, list[dict[str, Any]]] = {}
            for entry in entries:
                splits.setdefault(entry["split"], []).append(entry)
            own = next(
                (
                    part
                    for part in splits.values()
                    if len(part) == len(dataset) and _same_words(dataset, part[0], 0)
                ),
                [],
            )
        if not own:
            raise InputError(
                f"{path} has no split of {len(dataset)} images whose first caption is that of the "
                f"split {dataset.split!r}; expected MS-COCO's dataset_coco.json"
            )
        images, captions = [], [-1] * len(dataset.captions)
        for row, entry in enumerate(own):
            images.append(int(entry["cocoid"]))
            known: dict[str, list[int]] = {}
            for sentence in entry["sentences"]:
                known.setdefault(_letters(_words_of(sentence)), []).append(int(sentence["sentid"]))
            for caption in dataset.captions_of(row):
                ids = known.get(_letters(dataset.captions[caption]))
                if not ids:
                    sentences = map(_words_of, entry["sentences"])
                    raise InputError(
                        f"{path} has no caption {dataset.captions[caption]!r} of the image "
                        f"{entry['cocoid']}{did_you_mean(dataset.captions[caption], sentences)}"
                    )
                captions[caption] = ids.pop(0)
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not in Karpathy's form ({error!r}); expected images[] with filename, "
            "cocoid and sentences[] with sentid"
        ) from error
    return images, captions


def _same_words(dataset: ImageTextDataset, entry: Mapping[str, Any], row: int) -> bool:
    """Whether the first caption of an image is among those of an entry."""
    own = _letters(dataset.captions[dataset.captions_of(row)[0]])
    return own in {_letters(_words_of(sentence)) for sentence in entry["sentences"]}


def _words_of(sentence: Mapping[str, Any]) -> str:
    return sentence.get("raw") or " ".join(sentence["tokens"])


def _letters(text: str) -> str:
    """A caption without what tokenizers change: case, white space and punctuation."""
    return re.sub(r"[\W_]", "", text.lower())


def _number_in(text: str) -> int | None:
    """The number at the end of a text.

    Example:
        >>> _number_in("COCO_val2014_000000365325"), _number_in("dog")
        (365325, None)
    """
    found = re.search(r"(?<![0-9])[0-9]{1,18}$", text)
    return int(found.group()) if found else None
