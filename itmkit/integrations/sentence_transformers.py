"""Losses of itmkit as losses of the ``SentenceTransformerTrainer``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from itmkit.checks import InputError, integer_vector, type_of
from itmkit.losses import Distributed, VectorLoss
from itmkit.losses.kind import check_kind


def loss(
    itm_loss: nn.Module, model: nn.Module, *, gather_across_devices: bool = False
) -> SentenceTransformerLoss:
    """A loss of itmkit as one that ``SentenceTransformerTrainer`` takes.

    The first column of the data is the image, the second its text, or the other way round; both may
    be texts. A column ``label`` of integers says which rows belong together, as the captions of one
    image do: these are not negatives of each other. Without it, no rows belong together.

    Args:
        itm_loss: of scores or of vectors, such as ``InfoNCELoss()`` or ``HECTLoss()``; one of
            scores gets the cosines of all pairs. Its parameters are trained, too.
        model: the ``SentenceTransformer``.
        gather_across_devices: whether the loss is that of the rows of all processes, as
            :class:`itmkit.losses.Distributed` computes it, or of the rows of each.

    Raises:
        InputError: for a loss of anything else, such as one with a teacher; in training, data
            with more or fewer than two columns, or labels that are no integers.

    Example:
        ``SentenceTransformerTrainer(model, train_dataset=pairs, loss=loss(HECTLoss(), model))``
    """
    return SentenceTransformerLoss(itm_loss, model, gather_across_devices=gather_across_devices)


class SentenceTransformerLoss(nn.Module):
    """What :func:`loss` gives."""

    def __init__(
        self, itm_loss: nn.Module, model: nn.Module, *, gather_across_devices: bool = False
    ) -> None:
        super().__init__()
        if isinstance(itm_loss, Distributed):
            raise InputError(
                "itm_loss is a Distributed; expected the loss in it, and gather_across_devices=True"
            )
        kind = check_kind("scores", "vectors", itm_loss=itm_loss)
        if not isinstance(model, nn.Module):
            raise InputError(f"model is {type_of(model)}; expected a SentenceTransformer")
        own = VectorLoss(itm_loss) if kind == "scores" else itm_loss
        self.model = model  # under this name the trainer puts in the model that it has wrapped
        self.loss = Distributed(own) if gather_across_devices else own
        self._config = {"itm_loss": repr(itm_loss), "gather_across_devices": gather_across_devices}

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, as the trainer calls it."""
        columns = list(sentence_features)
        if len(columns) != 2:
            raise InputError(f"the data has {len(columns)} columns of inputs; expected two")
        image, text = (self.model(column)["sentence_embedding"] for column in columns)
        if labels is not None:
            labels = integer_vector("label", labels, len(image), image.device)
        found: Tensor = self.loss(image, text, labels)
        return found

    def get_config_dict(self) -> dict[str, Any]:
        """For the card of the model."""
        return self._config
