"""Ranks and intervals as plain NumPy code gets them, one query or one resample at a time."""

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


def ranks_by_definition(
    scores: NDArray[np.float32], captions: int = 5
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same, with what is tied with the best match in front of it, one query at a time."""

    def rank(query: NDArray[np.float32], own: slice) -> int:
        best = query[own].max()
        least = best - 16 * np.finfo(np.float32).eps * max(np.float32(1), abs(best))
        return int((query >= least).sum() - (query[own] >= least).sum())

    n, m = scores.shape
    i2t = [rank(scores[i], slice(captions * i, captions * (i + 1))) for i in range(n)]
    t2i = [rank(scores[:, j], slice(j // captions, j // captions + 1)) for j in range(m)]
    return np.array(i2t), np.array(t2i)


def resampled_recalls(
    i2t: NDArray[np.int64], t2i: NDArray[np.int64], samples: int, seed: int
) -> NDArray[np.float64]:
    """Recalls, median and mean rank of resamples of images with their captions.

    Args:
        i2t: ``(n,)`` rank of each image.
        t2i: ``(n · captions,)`` rank of each caption, those of an image next to each other.
        samples: how many resamples.
        seed: of the draws.
    """
    generator, per_image, found = np.random.default_rng(seed), t2i.reshape(len(i2t), -1), []
    for _ in range(samples):
        drawn = generator.integers(len(i2t), size=len(i2t))
        values = []
        for ranks in (i2t[drawn], per_image[drawn].ravel()):
            values += [100 * (ranks < level).mean() for level in (1, 5, 10)]
            values += [np.median(ranks) // 1 + 1, ranks.mean() + 1]
        found.append(values)
    return np.array(found)
