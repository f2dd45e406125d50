"""``itmkit convert``: features and captions in the layouts of others, written in ours."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli.parser import OneLineParser


def convert(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit convert``."""
    parser = OneLineParser(
        prog="itmkit convert",
        allow_abbrev=False,
        description="Write features of regions as a folder that PrecompDataset reads, and that is "
        "the features of a KarpathyDataset; or COCO's captions as the JSON of a KarpathyDataset.",
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=str,
        metavar="SOURCE",
        help="TSV of bottom-up attention, HDF5, or a folder of .npy or .npz files, an image each; "
        "several are parts of one. Or captions_*.json of COCO.",
    )
    add("--output", type=str, required=True, help="Folder, or JSON file, to write to.")
    add(
        "--splits",
        type=str,
        nargs="+",
        help="Of captions, the split of each source. Of features, the one that is written; where "
        "null, all of --annotations, or train.",
    )
    add(
        "--annotations",
        type=str,
        help="dataset_*.json of Karpathy: images get its file names, splits and captions.",
    )
    add("--folders", type=str, nargs="+", help="Of captions, the folder of each source's photos.")
    add("--dtype", type=str, help="Of the features: float16, which is the default, or float32.")
    given = parser.parse_args(list(words))
    from itmkit.checks import InputError
    from itmkit.data import convert_captions, convert_features

    of_captions = all(source.endswith(".json") for source in given.sources)
    kind = "captions" if of_captions else "features"
    for name in ("annotations", "dtype") if of_captions else ("folders",):
        if getattr(given, name) is not None:
            raise InputError(f"{name} is {getattr(given, name)!r}; expected none, of {kind}")
    if of_captions:
        splits, folders = given.splits or (), given.folders or ()
        found = convert_captions(given.sources, given.output, splits=splits, folders=folders)
        for name, (images, captions) in found.items():
            print(f"{given.output}, {name}: {images:,} images, {captions:,} captions")
        return
    if given.splits is not None and len(given.splits) != 1:
        raise InputError(f"splits is {given.splits}; expected one, of features")
    split = given.splits[0] if given.splits else None
    options = {"split": split, "annotations": given.annotations, "dtype": given.dtype or "float16"}
    for own in convert_features(given.sources, given.output, **options):
        few, many = own.regions
        regions = f"{few} regions each" if few == many else f"{few} to {many} regions"
        print(f"{own.path}: {own.images:,} images, {regions}")
