"""Cross-modal recall as a metric that gathers embeddings over batches and processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from itmkit.checks import InputError, check_floating, integer_vector
from itmkit.metrics.functional import recall_of_queries
from itmkit.metrics.ranks import matching_pairs, near_diagonal, ranks_by_tile
from itmkit.vectors import l2_normalize

_TILE = 512


class CrossModalRecall(Metric):
    """Recall at 1, 5 and 10 in both directions by cosine similarity of embeddings.

    Embeddings are gathered over updates and processes; the scores are computed in ``compute``, a
    bounded number at a time, in fp64 rounded to fp32. Ties count against the query, within the
    tolerance of :func:`itmkit.metrics.functional.retrieval_ranks`. For another score than the
    cosine use :func:`itmkit.metrics.functional.cross_modal_recall`.

    Each sample counts once, however often a sampler repeated it to fill a batch or a process. An
    image is known by its id, a caption by ``text_ids``. Without ``text_ids`` an update that brings
    an image again is taken to bring all of that image's captions again; give ``text_ids`` where the
    captions of one image are spread over several updates. An image without captions is searched
    but no query.

    Shape:
        ``update``: image ``(n, D)``, text ``(m, D)``, image_ids ``(n,)``, text_image_ids ``(m,)``,
        text_ids ``(m,)`` or None. ``compute``: the keys of
        :func:`itmkit.metrics.functional.recall_from_ranks`, 0-d fp32 tensors.

    Raises:
        InputError: shapes or dtypes that do not fit, negative ``text_ids``; in ``compute`` an
            embedding that is not finite, a caption without its image, no data, or repeated
            captions that cannot be told from new ones.

    Example:
        >>> metric = CrossModalRecall()
        >>> image = torch.eye(3)
        >>> text = torch.eye(3).repeat_interleave(2, 0)
        >>> owners = torch.arange(3).repeat_interleave(2)
        >>> metric.update(image, text, torch.arange(3), owners)
        >>> metric.compute()["rsum"]
        tensor(600.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image: list[Tensor]
    text: list[Tensor]
    image_ids: list[Tensor]
    text_image_ids: list[Tensor]
    text_ids: list[Tensor]
    sizes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Embeddings are kept flat, so that a process without data can take part in the gathering.
        for name in ("image", "text", "image_ids", "text_image_ids", "text_ids", "sizes"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        image: Tensor,
        text: Tensor,
        image_ids: Tensor,
        text_image_ids: Tensor,
        text_ids: Tensor | None = None,
    ) -> None:
        """Add images and captions.

        Args:
            image: ``(n, D)`` embeddings of any scale and floating dtype.
            text: ``(m, D)`` embeddings.
            image_ids: ``(n,)`` integers, one an image of the data set; a tensor, list or array.
            text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
            text_ids: ``(m,)`` integers from 0, one a caption of the data set.
        """
        _check_embeddings(image, text)
        image_ids = integer_vector("image_ids", image_ids, len(image), image.device)
        text_image_ids = integer_vector("text_image_ids", text_image_ids, len(text), image.device)
        rows = _first_rows(image_ids)
        if text_ids is not None:
            text_ids = integer_vector("text_ids", text_ids, len(text), image.device)
            if (text_ids < 0).any():
                raise InputError(f"text_ids holds {int(text_ids.min())}; expected 0 or more")
            columns = _first_rows(text_ids)
        elif len(rows) < len(image_ids):
            columns = _unrepeated(image_ids, text_image_ids)
        else:
            columns = torch.arange(len(text), device=image.device)
        if text_ids is None:
            text_ids = torch.full_like(text_image_ids, -1)
        image, text = image.detach()[rows].float(), text.detach()[columns].float()
        self.image.append(image.flatten())
        self.text.append(text.flatten())
        self.image_ids.append(image_ids[rows].long())
        self.text_image_ids.append(text_image_ids[columns].long())
        self.text_ids.append(text_ids[columns].long())
        self.sizes.append(torch.tensor([[*text.shape, len(image)]], device=text.device))

    def compute(self) -> dict[str, Tensor]:
        """Rank every caption for every image and every image for every caption."""
        if len(self.sizes) == 0:
            raise InputError("compute needs images and captions, got none")
        m, widths, n = dim_zero_cat(self.sizes).unbind(1)
        if len(widths.unique()) > 1:
            raise InputError(f"embeddings differ in width: {widths.unique().tolist()}")
        width = int(widths[0])
        image_ids, text_image_ids = dim_zero_cat(self.image_ids), dim_zero_cat(self.text_image_ids)
        text_ids = dim_zero_cat(self.text_ids)
        updates = torch.arange(len(m), device=m.device)
        rows = _first_rows(image_ids)
        columns = _kept_texts(
            image_ids, updates.repeat_interleave(n), text_image_ids, updates.repeat_interleave(m),
            text_ids,
        )  # fmt: skip
        image_ids, text_image_ids = image_ids[rows], text_image_ids[columns]
        _check_matches(image_ids, text_image_ids)
        order, pairs = near_diagonal(matching_pairs(image_ids, text_image_ids), len(columns))
        columns, text_image_ids = columns[order], text_image_ids[order]
        image = dim_zero_cat(self.image).view(-1, width)
        text = dim_zero_cat(self.text).view(-1, width)
        image = _normalised(image[rows], "image", image_ids)

        @lru_cache(maxsize=1)  # the tiles of a column follow each other
        def captions(start: int, stop: int) -> Tensor:
            part = slice(start, stop)
            return _normalised(text[columns[part]], "text", text_image_ids[part])

        def cosine(r: slice, c: slice) -> Tensor:
            return (image[r] @ captions(c.start, c.stop).T).float()

        shape = len(rows), len(columns)
        i2t, t2i = ranks_by_tile(cosine, shape, pairs, (_TILE, _TILE))
        result = recall_of_queries(i2t, t2i, pairs)
        return {
            key: torch.tensor(value, dtype=torch.float32, device=self.device)
            for key, value in result.items()
        }

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., Any] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        """Gather, a process without data sending empty tensors of the right shape and dtype."""
        if len(self.sizes) == 0:
            self.image = [torch.empty(0, device=self.device)]
            self.text = [torch.empty(0, device=self.device)]
            ids = torch.empty(0, dtype=torch.int64, device=self.device)
            self.image_ids, self.text_image_ids, self.text_ids = [ids], [ids], [ids]
            self.sizes = [ids.view(0, 3)]
        super()._sync_dist(dist_sync_fn, process_group)


def _check_embeddings(image: Tensor, text: Tensor) -> None:
    check_floating("(rows, D)", image=image, text=text)
    for name, value in (("image", image), ("text", text)):
        if value.ndim != 2:
            raise InputError(f"{name} has the shape {tuple(value.shape)}; expected (rows, D)")
    if image.shape[1] != text.shape[1] or image.shape[1] == 0:
        raise InputError(
            f"image and text have the widths {image.shape[1]} and {text.shape[1]}; "
            "expected one, above 0"
        )


def _first_rows(ids: Tensor) -> Tensor:
    """Rows at which an id comes for the first time, in order."""
    unique, inverse = ids.unique(return_inverse=True)
    rows = torch.arange(len(ids), device=ids.device)
    first = torch.full((len(unique),), len(ids), device=ids.device)
    return first.scatter_reduce(0, inverse, rows, "amin").sort().values


def _unrepeated(image_ids: Tensor, text_image_ids: Tensor) -> Tensor:
    """Rows of the captions of one update to keep when images repeat and captions have no ids.

    In pairs (caption i belongs to row i of the images) an image repeats once a caption and all
    captions are kept; else an image that comes r times brings each caption r times.
    """
    rows = torch.arange(len(text_image_ids), device=text_image_ids.device)
    if image_ids.shape == text_image_ids.shape and bool((image_ids == text_image_ids).all()):
        return rows
    repeats, owners = Counter(image_ids.tolist()), text_image_ids.tolist()
    counts, seen, keep = Counter(owners), Counter[int](), []
    for row, owner in enumerate(owners):
        if counts[owner] % max(1, repeats[owner]):
            raise InputError(
                f"image id {owner} came {repeats[owner]} times with {counts[owner]} captions: "
                "give text_ids to tell repeated captions from new ones"
            )
        if seen[owner] < counts[owner] // max(1, repeats[owner]):
            keep.append(row)
        seen[owner] += 1
    return rows[keep]


def _kept_texts(
    image_ids: Tensor,
    image_update: Tensor,
    text_image_ids: Tensor,
    text_update: Tensor,
    text_ids: Tensor,
) -> Tensor:
    """Rows of the captions to count: each text id once; without ids none that came again.

    Captions without an id came again where their update brings an image that an earlier one had.
    """
    known = (text_ids >= 0).nonzero()[:, 0]
    unknown = (text_ids < 0).nonzero()[:, 0]
    kept = known[_first_rows(text_ids[known])]
    pairs = torch.stack([text_ids[known], text_image_ids[known]], 1).unique(dim=0)
    if len(pairs) > len(kept):
        twice = pairs[1:][pairs[1:, 0] == pairs[:-1, 0]][0, 0]
        raise InputError(f"text id {int(twice)} belongs to more than one image id")
    if len(unknown):
        unique, owner = torch.cat([image_ids, text_image_ids[unknown]]).unique(return_inverse=True)
        image_owner, text_owner = owner.split([len(image_ids), len(unknown)])
        image_key = image_update * len(unique) + image_owner
        text_key = text_update[unknown] * len(unique) + text_owner
        # Captions that came with each image row, against those of that image's first row.
        ordered, order = image_key.sort()
        place = torch.searchsorted(ordered, text_key).clamp(max=max(0, len(ordered) - 1))
        found = ordered[place] == text_key if len(ordered) else torch.zeros_like(text_key).bool()
        row = order[place[found]]
        counts = torch.bincount(row, minlength=len(image_ids))
        first = torch.full((len(unique),), len(image_ids), device=owner.device).scatter_reduce(
            0, image_owner, torch.arange(len(image_ids), device=owner.device), "amin"
        )[image_owner]
        unclear = ((counts > 0) & (counts != counts[first])).nonzero()
        if len(unclear):
            i = int(unclear[0])
            raise InputError(
                f"image id {int(image_ids[i])} came again with {int(counts[i])} captions after "
                f"{int(counts[first[i]])}: give text_ids to tell repeated captions from new ones"
            )
        again = found.clone()
        again[found] = first[row] != row
        if again.any():
            rank_zero_warn(
                f"{int(again.sum())} captions came again with their image and were counted once; "
                "give text_ids if they are different captions",
                UserWarning,
            )
        kept = torch.cat([kept, unknown[~again]])
    return kept.sort().values


def _check_matches(image_ids: Tensor, text_image_ids: Tensor) -> None:
    if len(image_ids) == 0 or len(text_image_ids) == 0:
        raise InputError(
            f"compute needs images and captions, got {len(image_ids)} and {len(text_image_ids)}"
        )
    alone = text_image_ids[~torch.isin(text_image_ids, image_ids)]
    if len(alone):
        raise InputError(f"a caption belongs to image id {int(alone[0])}, which did not come")


def _normalised(embedding: Tensor, name: str, ids: Tensor) -> Tensor:
    """Unit rows in fp64; on the CPU where the device has no fp64."""
    wrong = (~embedding.isfinite().all(1)).nonzero()
    if len(wrong):
        owner = int(ids[int(wrong[0])])
        raise InputError(f"{name} embeddings must be finite, that of image id {owner} is not")
    if embedding.device.type == "mps":
        embedding = embedding.cpu()
    return l2_normalize(embedding.double(), eps=1e-12)  # embeddings may be of any scale
