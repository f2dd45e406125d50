"""Images that several splits share, or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import check_share
from itmkit.data import Images, ImageTextData
from itmkit.index.exact_scores import close_pairs

_SIDE = 16  # pixels of a small picture


class Duplicate(NamedTuple):
    """An image of one split and the same, or nearly the same, of another.

    Args:
        split: of the one, with its ``image``, a name.
        image: see there.
        other_split: of the other, with its ``other``.
        other: see there.
        cosine: of the two; 1 where they are equal, and less where they are not.
    """

    split: str
    image: str
    other_split: str
    other: str
    cosine: float


def duplicate_images(
    data: ImageTextData, splits: Sequence[str], *, threshold: float = 0.99
) -> list[Duplicate]:
    """Images of different splits that are equal or nearly so, the closest first.

    Equal: pixel by pixel, after scaling and cutting. Nearly: by the cosine of small pictures
    (16 × 16 pixels, less the mean of all); of stored features, of the mean over the regions. No
    model is used: other views of the same scene are not found.

    Args:
        data: the data.
        splits: names of the splits, in the order in which they are named in the pairs.
        threshold: the least cosine, in [0, 1].
    """
    check_share(threshold=threshold)
    names, hashes, vectors = {}, {}, {}
    for split in splits:
        own, found = [], []
        order = []
        for batch in data.evaluation_dataloader(split):
            order += batch.image_ids.tolist()
            own.append(_small(batch.images))
            found += [_hash(batch.images, row) for row in range(len(batch.image_ids))]
        names[split] = [data.split(split).names[row] for row in order]
        hashes[split], vectors[split] = found, torch.cat(own)
    mean = torch.cat(list(vectors.values())).mean(0)
    units = {split: F.normalize(own - mean, dim=1) for split, own in vectors.items()}
    pairs = []
    for one, other in combinations(splits, 2):
        equal = dict.fromkeys(_equal(hashes[one], hashes[other]), 1.0)
        close = close_pairs(units[one], units[other], threshold)
        near = {(row, column): min(cosine, 1 - 1e-6) for row, column, cosine in close}
        for (row, column), cosine in (near | equal).items():
            pairs.append(Duplicate(one, names[one][row], other, names[other][column], cosine))
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair))


def _small(images: Images) -> Tensor:
    features = images.features
    if features.ndim == 4:
        return F.adaptive_avg_pool2d(features, _SIDE).flatten(1)
    if images.mask is None:
        return features.mean(1)
    return (features * images.mask[:, :, None]).sum(1) / images.mask.sum(1, keepdim=True)


def _hash(images: Images, row: int) -> bytes:
    own = images.features[row]
    if images.mask is not None:
        own = own[images.mask[row]]
    return blake2b(own.contiguous().numpy().tobytes(), digest_size=16).digest()


def _equal(one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    places: dict[bytes, list[int]] = {}
    for row, content in enumerate(one):
        places.setdefault(content, []).append(row)
    return [(row, column) for column, found in enumerate(other) for row in places.get(found, [])]
