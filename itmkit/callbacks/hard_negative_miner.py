"""Hard negatives of the whole training split, brought together in batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Generator, Tensor

from itmkit._internals import data_module_of
from itmkit.checks import InputError, check_count, check_finite, check_positive, type_of
from itmkit.chunks import chunks
from itmkit.data.order import EpochOrder, mixed_seed
from itmkit.data.rival_groups import Relevance, Rivals, rival_groups
from itmkit.distributed import rank, world_size
from itmkit.precision import autocast_off
from itmkit.retrieval import Encoding, Gallery, encode, evaluating
from itmkit.retrieval.model import RetrievalModel
from itmkit.retrieval.score import score_block

_CHUNK = 256  # images scored at once


class HardNegativeMiner(Callback):
    r"""Fill training batches with groups of pairs that the model takes for each other.

    In a random batch an image rarely meets the captions that it is really confused with. This
    callback encodes the training split, finds the ``top_k`` wrong captions of every image and the
    wrong images of every caption that score best, and draws the rows of the epoch in groups: a pair
    and rivals of it, each drawn with a probability in proportion to :math:`e^{s/\tau}` of its score
    s. Captions that are true of another image of the group are left out (``relevance`` of the
    dataset). The hard negatives of a pair are then in its own batch: nothing more is loaded.

    A model that has learnt little can learn nothing from the hardest negatives. With ``hardening``,
    all members of a group are drawn at random at first, and fewer and fewer of them over so many
    batches.

    An epoch has as many batches as before. No two groups start with the same caption, but a caption
    may be a rival in several groups. Which rows an epoch has follows from the seed, the epoch and
    the scores alone: it is the same on k processes, which share the encoding, and in a resumed run;
    the checkpoint holds what was mined. Every process holds the vectors of the whole split.

    After GRIT-VLP (Byun et al., ECCV 2022), which sorts a queue into such batches. Differs: mined
    over the whole split, drawn by score.

    Args:
        group_size: pairs of a group, at least 2; divides the ``batch_size`` of the data.
        top_k: rivals kept of every image and of every caption; at least 1.
        temperature: τ, above 0; the smaller, the more often the hardest ones are drawn.
        start_epoch: first epoch with groups; the order is random before it.
        every_n_epochs: how often the split is mined anew; 0: once, for a model whose scores no
            longer change.
        hardening: number of batches, from ``start_epoch`` on, over which the share of members drawn
            at random falls from 1 to 0; 0: none is.

    Raises:
        InputError: for a number out of its range; when a run starts, for data that is no
            :class:`~itmkit.data.ImageTextData`, has ``bucket_batches`` or ``exclude``, or another
            ``batch_size``, and for ``overfit_batches``; when an epoch starts, for scores that are
            not finite numbers of fp16, as those of a model whose weights are NaN.

    Example:
        >>> miner = HardNegativeMiner(4, start_epoch=3, hardening=400)
        >>> miner.random_share(epoch=4, batches=200).round(decimals=4)[:3]
        tensor([0.5000, 0.4975, 0.4950])
    """

    def __init__(
        self,
        group_size: int = 4,
        *,
        top_k: int = 32,
        temperature: float = 0.05,
        start_epoch: int = 0,
        every_n_epochs: int = 1,
        hardening: int = 0,
    ) -> None:
        check_count(2, group_size=group_size)
        check_count(top_k=top_k)
        check_count(0, start_epoch=start_epoch, every_n_epochs=every_n_epochs, hardening=hardening)
        check_positive(temperature=temperature)
        self.group_size = group_size
        self.top_k = top_k
        self.temperature = temperature
        self.start_epoch = start_epoch
        self.every_n_epochs = every_n_epochs
        self.hardening = hardening
        self._rivals: Rivals | None = None
        self._mined_in = -1  # epoch
        self._rows: Tensor | None = None  # of an epoch, which is
        self._rows_of = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.load_state_dict({})  # this run's checkpoint is read after setup

    def state_dict(self) -> dict[str, Any]:
        if self._rivals is None:
            return {}
        return {
            "rivals": vars(self._rivals),
            "mined_in": self._mined_in,
            "rows": self._rows,
            "rows_of": self._rows_of,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rivals = state_dict.get("rivals")
        self._rivals = None if rivals is None else Rivals(**rivals)
        self._mined_in = state_dict.get("mined_in", -1)
        self._rows = state_dict.get("rows")
        self._rows_of = state_dict.get("rows_of", -1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_module_of(trainer)
        if not hasattr(data, "evaluation_dataloader"):
            raise InputError(
                f"the data is {type_of(data)}; expected an ImageTextData, for HardNegativeMiner"
            )
        if data.batch_size % self.group_size:
            raise InputError(
                f"batch_size is {data.batch_size}; expected a multiple of group_size, "
                f"{self.group_size}, for HardNegativeMiner"
            )
        if data.bucket_batches > 1:
            raise InputError(
                f"bucket_batches is {data.bucket_batches}; expected 0 for HardNegativeMiner, which "
                "chooses the batches"
            )
        if data.exclude is not None:
            raise InputError(
                f"exclude is {str(data.exclude)!r}; expected none for HardNegativeMiner, which "
                "draws from all captions"
            )
        known: Any = trainer  # mypy does not know all of its attributes
        if known.overfit_batches:
            raise InputError(
                f"trainer.overfit_batches is {known.overfit_batches}; expected 0 for "
                "HardNegativeMiner, which draws from all captions in every epoch"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that resumes inside an epoch does not start it.
        if self._rows_of == trainer.current_epoch:
            _order_of(trainer).chosen = self._rows

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, order = trainer.current_epoch, _order_of(trainer)
        if epoch < self.start_epoch:
            return
        data = data_module_of(trainer)
        dataset = data.split(data.train_split)
        every = self.every_n_epochs
        if self._rivals is None or (every and epoch - self._mined_in >= every):
            self._rivals = self._mined(trainer, pl_module)
            self._mined_in = epoch
        groups = order.total_size // self.group_size
        of_batch = self.random_share(epoch, order.batches)
        rows = rival_groups(
            self._rivals,
            dataset.caption_images,
            dataset.relevance,
            groups=groups,
            size=self.group_size,
            temperature=self.temperature,
            random_share=of_batch.repeat_interleave(groups // order.batches),
            generator=Generator().manual_seed(mixed_seed(order.seed, epoch, order.length)),
        )
        self._rows, self._rows_of = rows.flatten(), epoch
        order.chosen = self._rows

    def random_share(self, epoch: int, batches: int) -> Tensor:
        """The share of members drawn at random, in every batch of an epoch of so many."""
        seen = (epoch - self.start_epoch) * batches + torch.arange(batches)
        return (1 - seen / max(self.hardening, 1)).clamp(min=0) * bool(self.hardening)

    def _mined(self, trainer: Trainer, model: Any) -> Rivals:
        data, precision = data_module_of(trainer), trainer.precision_plugin
        with precision.forward_context():
            loader = data.evaluation_dataloader(data.train_split, share=(rank(), world_size()))
            parts = [
                _scored_fields(model, encode(model, [precision.convert_input(batch)]))
                for batch in loader
            ]
            gallery = Gallery.gathered(parts)
            dataset = data.split(data.train_split)
            size = (len(dataset), len(dataset.captions))
            try:
                return mine(model, gallery, dataset.relevance, self.top_k, size=size)
            except InputError as error:
                epoch = trainer.current_epoch
                raise InputError(f"HardNegativeMiner, in epoch {epoch}: {error}") from error


def mine(
    model: RetrievalModel,
    gallery: Gallery,
    relevance: Relevance,
    top_k: int,
    *,
    size: tuple[int, int],
) -> Rivals:
    """The wrong captions of every image, and the wrong images of every caption, that score best.

    Args:
        model: that scores.
        gallery: the images and captions of a split; their ids are the rows of the split.
        relevance: which captions are true of which images, by these rows.
        top_k: how many.
        size: numbers of images and of captions of the split.

    Returns:
        The rivals, by the rows of the split; images or captions that the gallery lacks have none.

    Raises:
        InputError: for a score that is not finite, with the rows of its image and its caption.
    """
    image_ids, text_ids = gallery.image_ids, gallery.text_ids
    captions = _empty(size[0], min(top_k, len(text_ids)))
    found = _empty(len(text_ids), min(top_k, len(image_ids)))  # of the captions of the gallery
    texts = gallery.texts.to(model.device)
    with evaluating(model):
        for part, scores in _score_rows(model, gallery.images, texts):
            true = relevance(image_ids[part], text_ids).to(scores.device)
            halves = scores.half()
            check_finite(halves, partial(_name_of_score, image_ids[part], text_ids))
            wrong = halves.masked_fill(true, -torch.inf).cpu()
            best = wrong.topk(captions[0].shape[1], dim=1)
            _put(captions, image_ids[part], best.values, text_ids[best.indices])
            with autocast_off(wrong):  # which does not know fp16 beside bf16
                both = torch.cat([found[1], wrong.T], dim=1).topk(found[1].shape[1], dim=1)
            rows = torch.cat([found[0], image_ids[part].int().expand(len(text_ids), -1)], dim=1)
            found = rows.gather(1, both.indices), both.values
    images = _empty(size[1], found[0].shape[1])
    _put(images, text_ids, found[1], found[0])
    return Rivals(*captions, *images)


def _score_rows(
    model: RetrievalModel, images: Encoding, texts: Encoding
) -> Iterator[tuple[slice, Tensor]]:
    for part in chunks(len(images), _CHUNK):
        yield part, score_block(model, images[part].to(model.device), texts)


def _name_of_score(image_ids: Tensor, text_ids: Tensor, row: int, column: int) -> str:
    return f"the score of image {int(image_ids[row])} and caption {int(text_ids[column])}, in fp16,"


def _empty(rows: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows of items and their scores, none found yet."""
    return (
        torch.full((rows, count), -1, dtype=torch.int32),
        torch.full((rows, count), -torch.inf, dtype=torch.float16),
    )


def _put(table: tuple[Tensor, Tensor], rows: Tensor, scores: Tensor, items: Tensor) -> None:
    table[0][rows] = items.int().where(scores > -torch.inf, -1)
    table[1][rows] = scores


def _scored_fields(model: Any, gallery: Gallery) -> Gallery:
    """A gallery with what ``score`` reads alone, on the CPU."""
    names = getattr(model, "score_fields", None)

    def kept(side: Encoding) -> Encoding:
        fields = side.items()
        return Encoding(**{name: fields[name] for name in names or fields}).to("cpu")

    return Gallery(
        kept(gallery.images),
        kept(gallery.texts),
        gallery.image_ids,
        gallery.text_image_ids,
        gallery.text_ids,
    )


def _order_of(trainer: Trainer) -> EpochOrder:
    loader: Any = trainer.train_dataloader
    order = getattr(loader, "sampler", None)
    if not isinstance(order, EpochOrder):
        raise InputError(
            f"the training data is {type_of(loader)}; expected that of an ImageTextData, for "
            "HardNegativeMiner"
        )
    return order
