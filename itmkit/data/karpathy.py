"""Captions as in Karpathy's ``dataset_*.json``, and their photos."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, cast

from itmkit.checks import InputError, check_optional_count
from itmkit.data.captions import Captions, check_name, check_unique, clean_sentence
from itmkit.data.photo import photo_names
from itmkit.data.photos import PhotoDataset
from itmkit.data.picture_files import open_pictures
from itmkit.files import check_folder, read_json, user_path


class KarpathyDataset(PhotoDataset):
    """One split of a ``dataset_*.json`` (Flickr8k, Flickr30K, COCO) and its folder of photos.

    Serves pixels, or with ``features`` what ``itmkit extract`` made of them.

    Args:
        split: ``"train"``, ``"val"``, ``"test"``, or another split of the JSON file.
        annotations: the JSON file; where None, all photos in ``images`` and the folders inside it
            are the split, in the order of their names, without captions.
        images: folder of the photos, or files that hold them, see :func:`open_pictures`; COCO's
            ``filepath`` is a folder inside it.
        use_restval: whether COCO's ``"restval"`` belongs to ``"train"``.
        max_captions: captions of a photo that are used, the first ones, as usual where COCO has
            six or seven; all where None.
        require_captions: whether a split without any caption is an error; photos without captions
            can be encoded, and their features extracted.
        **photo_options: see :class:`PhotoDataset`: ``features``, ``image_size``, ``mean``, ``std``,
            ``train_augment`` and others.

    Raises:
        FileNotFoundError: if the JSON file, a folder or a photo is missing.
        InputError: if a number is out of its range, a file is of the wrong form, names a photo
            twice or one outside ``images``, or the split is empty.
    """

    def __init__(
        self,
        split: str,
        annotations: str | Path | None,
        images: str | Path | None = None,
        *,
        use_restval: bool = True,
        max_captions: int | None = 5,
        require_captions: bool = True,
        **photo_options: Any,
    ) -> None:
        features = photo_options.get("features")
        if images is None and features is None:
            raise InputError("images and features are both None; expected one of them")
        photos = None if images is None else user_path(images)
        pictures = None
        if photos is not None and (features is None or annotations is None):
            pictures = open_pictures(photos, split)
            if pictures is None:
                check_folder("images", photos)
        if annotations is not None:
            captions = karpathy_captions(
                split,
                annotations,
                use_restval=use_restval,
                max_captions=max_captions,
                require_captions=require_captions,
            )
        elif photos is None:
            raise InputError("annotations and images are both None; expected one of them")
        else:
            follow_links = photo_options.get("follow_links", False)
            names = photo_names(photos, follow_links) if pictures is None else pictures.names
            captions = Captions(split, names, None)
        super().__init__(captions, pictures or photos, **photo_options)


def karpathy_captions(
    split: str,
    annotations: str | Path,
    *,
    use_restval: bool = True,
    max_captions: int | None = 5,
    require_captions: bool = True,
) -> Captions:
    """The captions of a split of a ``dataset_*.json``; see :class:`KarpathyDataset`.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is of the wrong form, or the split is empty.
    """
    check_optional_count(max_captions=max_captions)
    path = user_path(annotations)
    splits = {split, "restval"} if split == "train" and use_restval else {split}
    if not path.is_file():
        raise FileNotFoundError(f"annotations={str(path)!r} is not a file")
    content = read_json(path)
    where = ""
    names: list[str] = []
    groups: list[list[str]] = []
    ids: list[int | None] = []
    try:
        entries = content["images"]
        for row, entry in enumerate(entries):
            where = f" in {repr(entry)[:80]}, images[{row}]"
            if entry["split"] in splits:
                names.append(_name(entry))
                sentences = entry["sentences"] if require_captions else entry.get("sentences", ())
                sentences = list(sentences)[:max_captions]
                groups.append([_text(sentence) for sentence in sentences])
                ids += [sentence.get("sentid") for sentence in sentences]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not in Karpathy's form ({error!r}{where}); expected images[] with "
            "filename, split and sentences[]"
        ) from error
    wanted = " or ".join(sorted(splits, reverse=True))
    if not names:
        there = sorted({entry["split"] for entry in entries}, key=str)
        raise InputError(f"{path} has no image of the split {wanted!r}; it has {there}")
    if require_captions and not any(groups):
        raise InputError(f"{path} has no caption in the split {wanted!r}; expected one or more")
    for name in names:
        check_name(name, path)
    check_unique(names, path)
    captions = Captions.of_images(split, dict(zip(names, groups, strict=True)))
    if ids and all(type(one) is int for one in ids):
        captions.sentence_ids = cast(list[int], ids)
    return captions


def _name(entry: dict[str, Any]) -> str:
    return str(PurePosixPath(entry.get("filepath", ""), entry["filename"]))


def _text(sentence: dict[str, Any]) -> str:
    return clean_sentence(sentence.get("raw") or " ".join(sentence["tokens"]))
