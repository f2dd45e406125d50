"""Cross-modal recall as a metric that gathers embeddings over batches and processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.plot import plot_single_or_multi_val

from itmkit.checks import InputError, check_finite, check_floating, integer_vector
from itmkit.metrics.judgements import Matches
from itmkit.metrics.query_ranks import query_ranks
from itmkit.metrics.ranks import matching_pairs, near_diagonal, ranks_by_tile
from itmkit.vectors import l2_normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TILE = 512
_SAME = 0.05  # of the length: more than a vector changes when it is encoded in another batch
_STATES = {
    "image": torch.float32,
    "text": torch.float32,
    "image_ids": torch.int64,
    "text_image_ids": torch.int64,
    "text_ids": torch.int64,
    "widths": torch.int64,
}


class CrossModalRecall(Metric):
    """Recall at 1, 5 and 10 in both directions by cosine similarity of embeddings.

    Embeddings are gathered over updates and processes; the scores are computed in ``compute``, a
    bounded number at a time, in fp64 rounded to fp32. Ties count against the query, within the
    tolerance of :func:`itmkit.metrics.functional.retrieval_ranks`. For another score than the
    cosine use :func:`itmkit.metrics.cross_modal_recall`.

    Nothing is counted twice. Samplers such as ``DistributedSampler`` repeat samples to fill the
    last batch or the share of a process, so pass ``text_ids``: an image is identified by its image
    id, a caption by its text id, and each counts once however often it is seen. Without
    ``text_ids`` all captions count as distinct, and an image id that repeats is an error, because
    its captions may repeat too. The one exception is an update of pairs, in which caption i belongs
    to image i: there an image may repeat, once per caption. An image without captions is searched
    but is not a query.

    It follows the conventions of torchmetrics: ``forward``, ``reset``, ``clone``, ``merge_state``,
    ``sync``, ``plot``, pickling and ``MetricCollection``.

    Args:
        **kwargs: arguments of every ``torchmetrics.Metric``, such as ``compute_on_cpu``.

    Shape:
        ``update``: image ``(n, D)``, text ``(m, D)``, image_ids ``(n,)``, text_image_ids ``(m,)``,
        text_ids ``(m,)`` or None. ``compute``: the keys of
        :func:`itmkit.metrics.functional.recall_from_ranks`, 0-d fp32 tensors.

    Raises:
        InputError: shapes or dtypes that do not fit, an embedding that is not finite, negative
            ``text_ids``, one id with two different vectors, an image id that repeats without
            ``text_ids``; in ``compute`` also a caption whose image is missing, or no data.

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
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    image: list[Tensor]
    text: list[Tensor]
    image_ids: list[Tensor]
    text_image_ids: list[Tensor]
    text_ids: list[Tensor]
    widths: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Embeddings are kept flat, so that a process without data, which does not know their width,
        # can take part in gathering.
        for name in _STATES:
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
            image_ids: ``(n,)`` integers, one per image of the data set; a tensor, list or array.
            text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
            text_ids: ``(m,)`` integers from 0, one per caption of the data set.
        """
        _check_embeddings(image, text)
        image_ids = integer_vector("image_ids", image_ids, len(image), image.device).long()
        owners = integer_vector("text_image_ids", text_image_ids, len(text), image.device).long()
        image, text = image.detach().float(), text.detach().float()
        check_finite(image, lambda row, _: f"the embedding of image id {int(image_ids[row])}")
        check_finite(text, lambda row, _: f"the embedding of a caption of image id {owners[row]}")
        rows = _distinct_rows("image id", image_ids, image)
        if text_ids is not None:
            text_ids = integer_vector("text_ids", text_ids, len(text), image.device).long()
            if (text_ids < 0).any():
                raise InputError(f"text_ids holds {int(text_ids.min())}; expected 0 or more")
            columns = _distinct_rows("text id", text_ids, text)
        else:
            if not torch.equal(image_ids, owners):  # no pairs
                _check_no_repeats(image_ids)
            text_ids = torch.full_like(owners, -1)
            columns = torch.arange(len(text), device=text.device)
        if len(image) == len(text) == 0:
            return
        self.image.append(image[rows].flatten())
        self.text.append(text[columns].flatten())
        self.image_ids.append(image_ids[rows])
        self.text_image_ids.append(owners[columns])
        self.text_ids.append(text_ids[columns])
        self.widths.append(torch.tensor([image.shape[1]], device=image.device))

    def compute(self) -> dict[str, Tensor]:
        """Rank every caption for every image and every image for every caption."""
        image, text, image_ids, owners, text_ids, widths = (
            dim_zero_cat(getattr(self, name)) for name in _STATES
        )
        if len(image_ids) == 0 or len(owners) == 0:
            raise InputError(
                f"compute has {len(image_ids)} images and {len(owners)} captions; expected both"
            )
        if len(widths.unique()) > 1:
            raise InputError(f"embeddings have the widths {widths.unique().tolist()}; expected one")
        image, text = image.view(-1, int(widths[0])), text.view(-1, int(widths[0]))
        if (text_ids < 0).any():
            _check_no_repeats(image_ids)
            distinct = -1 - torch.arange(len(text_ids), device=text_ids.device)
            text_ids = text_ids.where(text_ids >= 0, distinct)
        _check_owners(image_ids, owners, text_ids)
        rows = _distinct_rows("image id", image_ids, image)
        columns = _distinct_rows("text id", text_ids, text)
        image, image_ids, owners = image[rows], image_ids[rows], owners[columns]
        order, pairs = near_diagonal(matching_pairs(image_ids, owners), len(columns))
        columns, owners = columns[order], owners[order]
        image = _unit(image)

        def cosines(part: slice, parts: Sequence[slice]) -> Iterator[Tensor]:
            captions = _unit(text[columns[part]])
            return ((image[rows] @ captions.T).float() for rows in parts)

        shape = (len(image), len(columns))
        ranks = ranks_by_tile(cosines, shape, pairs, (_TILE, _TILE))
        found = query_ranks(*ranks, Matches.of(pairs, shape), image_ids, owners)
        return {
            key: torch.tensor(value, dtype=torch.float32, device=self.device)
            for key, value in found.recall().items()
        }

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes, as torchmetrics does it.

        A process without data takes part with empty tensors of the right dtypes.
        """
        if isinstance(self.widths, list) and not self.widths:
            for name, dtype in _STATES.items():
                getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the data of another metric of this kind, or of its ``metric_state``."""
        super().merge_state(incoming_state)
        # An update of nothing: compute would return the result that it had before.
        nothing, no_ids = torch.empty(0, 1, device=self.device), torch.empty(0, dtype=torch.int64)
        self.update(nothing, nothing, no_ids, no_ids)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Change nothing: ids stay integers, and embeddings are ranked in fp64."""
        return self

    def plot(
        self,
        val: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
        ax: Axes | None = None,
    ) -> tuple[Figure, Axes]:
        """Plot the six recalls in per cent, of one result or of several in their order.

        Args:
            val: what ``compute`` or ``forward`` returned, or a list of such results; None: what
                ``compute`` returns now.
            ax: where to draw; None: a new figure.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        val = self.compute() if val is None else val
        recalls = _recalls(val) if isinstance(val, Mapping) else [_recalls(one) for one in val]
        drawn: tuple[Any, Any] = plot_single_or_multi_val(
            recalls,
            ax=ax,
            higher_is_better=self.higher_is_better,
            lower_bound=self.plot_lower_bound,
            upper_bound=self.plot_upper_bound,
            name="recall (%)",
        )
        figure, axes = drawn
        return figure or axes.get_figure(), axes


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


def _check_no_repeats(image_ids: Tensor) -> None:
    """Raise if an image id repeats, where captions have no ids."""
    values, counts = image_ids.unique(return_counts=True)
    if len(values) < len(image_ids):
        place = int((counts > 1).nonzero()[0])
        raise InputError(
            f"image id {int(values[place])} occurs {int(counts[place])} times without text_ids; "
            "expected once, or text_ids in every update to tell repeated captions from new ones"
        )


def _check_owners(image_ids: Tensor, owners: Tensor, text_ids: Tensor) -> None:
    """Raise if the image of a caption is missing, or a caption belongs to two images."""
    alone = owners[~torch.isin(owners, image_ids)]
    if len(alone):
        raise InputError(f"text_image_ids holds {int(alone[0])}; expected an id of image_ids")
    wrong = (owners[_first_rows(text_ids)] != owners).nonzero()
    if len(wrong):
        raise InputError(f"text id {int(text_ids[wrong[0, 0]])} belongs to more than one image id")


def _first_rows(ids: Tensor) -> Tensor:
    """For each row, the first row that has the same id."""
    unique, inverse = ids.unique(return_inverse=True)
    rows = torch.arange(len(ids), device=ids.device)
    first = torch.full((len(unique),), len(ids), device=ids.device)
    return first.scatter_reduce(0, inverse, rows, "amin")[inverse]


def _distinct_rows(kind: str, ids: Tensor, vectors: Tensor) -> Tensor:
    """Rows at which an id occurs for the first time, in order.

    Raises:
        InputError: where an id repeats with another vector. Small differences are accepted: the
            vector of an image depends a little on the batch in which it was encoded.
    """
    first = _first_rows(ids)
    rows = torch.arange(len(ids), device=ids.device)
    again = rows[first != rows]
    before, now = vectors[first[again]], vectors[again]
    other = ((now - before).norm(dim=1) > _SAME * before.norm(dim=1)).nonzero()
    if len(other):
        raise InputError(
            f"{kind} {int(ids[again[other[0, 0]]])} has two different vectors; expected ids that "
            "are unique in the data set, not in the batch only"
        )
    return rows[first == rows]


def _unit(vectors: Tensor) -> Tensor:
    """Unit rows in fp64; on the CPU where the device has no fp64."""
    if vectors.device.type == "mps":
        vectors = vectors.cpu()
    return l2_normalize(vectors.double(), eps=1e-12)  # embeddings may be of any scale


def _recalls(result: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values that are recalls: ranks and the sum have another scale."""
    return {key: value for key, value in result.items() if "_r" in key}
