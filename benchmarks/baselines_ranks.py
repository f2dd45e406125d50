"""Ranks as the field's evaluation code counts them: sort every query, then look for its matches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def argsort_ranks(
    scores: NDArray[np.float32], captions: int = 5
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks of the images' best captions and of the captions' images.

    Args:
        scores: ``(n, n · captions)``, the captions of an image next to each other.
        captions: captions an image.
    """
    i2t = np.zeros(len(scores), dtype=np.int64)
    for image in range(len(scores)):
        order = np.argsort(scores[image])[::-1]
        own = range(captions * image, captions * (image + 1))
        i2t[image] = min(np.where(order == caption)[0][0] for caption in own)
    t2i = np.zeros(scores.shape[1], dtype=np.int64)
    for caption in range(scores.shape[1]):
        order = np.argsort(scores[:, caption])[::-1]
        t2i[caption] = np.where(order == caption // captions)[0][0]
    return i2t, t2i
