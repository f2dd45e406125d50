"""``itmkit convert``: features and captions in the layouts of others, written in ours."""

from __future__ import annotations

from typing import Any

from itmkit.checks import InputError

ARGUMENTS: dict[str, Any] = {
    "sources": {"nargs": "+", "metavar": "SOURCE"},
    "--splits": {"nargs": "+"},
    "--folders": {"nargs": "+"},
}


def convert(
    sources: list[str],
    *,
    output: str,
    splits: list[str] | None = None,
    annotations: str | None = None,
    folders: list[str] | None = None,
    dtype: str | None = None,
) -> None:
    """Write features of regions, or captions of COCO, in layouts that itmkit reads.

    Features become a folder that PrecompDataset reads, and that is the features of a
    KarpathyDataset; captions the JSON of a KarpathyDataset.

    Args:
        sources: TSV of bottom-up attention, HDF5, or a folder of .npy or .npz files, an image each;
            several are parts of one. Or captions_*.json of COCO.
        output: Folder, or JSON file, to write to.
        splits: Of captions, the split of each source. Of features, the one that is written; where
            null, all of --annotations, or train.
        annotations: dataset_*.json of Karpathy: images get its file names, splits and captions.
        folders: Of captions, the folder of each source's photos.
        dtype: Of the features: float16, which is the default, or float32.
    """
    from itmkit.data import convert_captions, convert_features

    of_captions = all(source.endswith(".json") for source in sources)
    kind = "captions" if of_captions else "features"
    others = {"annotations": annotations, "dtype": dtype} if of_captions else {"folders": folders}
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name} is {value!r}; expected none, of {kind}")
    if of_captions:
        found = convert_captions(sources, output, splits=splits or (), folders=folders or ())
        for name, (images, captions) in found.items():
            print(f"{output}, {name}: {images:,} images, {captions:,} captions")
        return
    if splits is not None and len(splits) != 1:
        raise InputError(f"splits is {splits}; expected one, of features")
    split = splits[0] if splits else None
    options: dict[str, Any] = {"annotations": annotations, "dtype": dtype or "float16"}
    for own in convert_features(sources, output, split=split, **options):
        few, many = own.regions
        regions = f"{few} regions each" if few == many else f"{few} to {many} regions"
        print(f"{own.path}: {own.images:,} images, {regions}")
