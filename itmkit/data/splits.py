"""The splits of a dataset, opened one by one and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from itmkit.checks import InputError
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.photos import Photos
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.stored_features import StoredFeatures


class Splits(Mapping[str, ImageTextDataset]):
    """The splits that are open; :meth:`open` adds one.

    Photos that two splits share are warned of.

    Args:
        make: makes the dataset of a split from its name.
        served: what is made of that, and kept.
    """

    def __init__(
        self,
        make: Callable[[str], ImageTextDataset],
        served: Callable[[ImageTextDataset], ImageTextDataset],
    ) -> None:
        self._make, self._served = make, served
        self._opened: dict[str, ImageTextDataset] = {}
        self._photos: dict[str, set[Path]] = {}
        self._hashes: dict[str, str] = {}

    def __getitem__(self, name: str) -> ImageTextDataset:
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

    def open(self, name: str) -> ImageTextDataset:
        """The dataset of a split; made when first asked for.

        Raises:
            InputError: it has no images, or its features are of another backbone than those of the
                other splits.
        """
        if name not in self._opened:
            dataset = self._make(name)
            if len(dataset) == 0:
                raise InputError(f"split {name!r} has no images; expected at least one")
            self._warn_of_shared_photos(dataset)
            dataset = self._served(dataset)
            if isinstance(dataset.source, StoredFeatures):
                for split, other in self.stored_features().items():
                    whose = f"those of the split {split!r}"
                    dataset.source.check_same_backbone(other.backbone, whose)
            self._opened[name] = dataset
        return self._opened[name]

    def stored_features(self) -> dict[str, StoredFeatures]:
        """Where the images of the open splits are stored features: those, by split."""
        sources = {name: split.source for name, split in self.items()}
        return {name: own for name, own in sources.items() if isinstance(own, StoredFeatures)}

    def preprocessing(self, first: str) -> Preprocessing | None:
        """How photos became pixels: of the split ``first``, or else of any that is open."""
        opened = sorted(self, key=lambda name: name != first)
        found = (self[name].preprocessing for name in opened)
        return next((own for own in found if own is not None), None)

    def fingerprint(self, name: str) -> str:
        """A hash of the names and captions of an open split, in their order."""
        if name not in self._hashes:
            split, digest = self[name], sha256()
            for text in (*split.names, *split.captions):
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(split.caption_images.numpy().tobytes())
            self._hashes[name] = digest.hexdigest()
        return self._hashes[name]

    def _warn_of_shared_photos(self, dataset: ImageTextDataset) -> None:
        source = dataset.source
        if not isinstance(source, Photos):
            return  # names of others may be numbers of rows
        photos = {source.place(row) for row in range(len(source))}
        for other, theirs in self._photos.items():
            if other != dataset.split and (shared := sorted(photos & theirs)):
                rank_zero_warn(
                    f"the splits {other!r} and {dataset.split!r} share {len(shared)} photos, "
                    f"such as {shared[0]}: recall on what was trained on means nothing"
                )
        self._photos[dataset.split] = photos
