"""Evaluation protocols: which images and captions of a split are searched together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.checks import InputError, check_choice, check_count, integer_vector
from itmkit.chunks import chunks
from itmkit.metrics.ranks import matching_pairs


@dataclass(frozen=True)
class Protocol:
    """Which images and captions of a split are searched together.

    The images are cut into contiguous folds of equal size, in the order of the split. Each fold is
    a gallery of its own, with the captions of its images; recall is the mean over the folds. One
    fold is the whole split.

    Recall grows as a gallery shrinks, so numbers of different protocols cannot be compared: on the
    same 5,000 images, recall of five folds of 1,000 is far higher than that of the whole.

    Args:
        folds: number of folds, a divisor of the number of images.
        images: how many images the split must have; None for any number.
        captions_per_image: how many captions each image must have; None for any number.
        judgements: name of the judgements that say what matches, in place of the dataset's own
            captions; see :func:`itmkit.evaluation.read_judgements`. None: there are none.
        probes: whether a command shows the model pairs of a true and a false sentence about each
            image too; see :func:`itmkit.evaluation.probe_scenes`.

    Raises:
        InputError: a number below 1.

    Example:
        >>> protocol = Protocol(folds=2)
        >>> image_ids, text_image_ids = torch.tensor([3, 5, 8, 9]), torch.tensor([9, 3, 5, 8, 3])
        >>> for images, captions in protocol.split(image_ids, text_image_ids):
        ...     print(images.tolist(), captions.tolist())
        [0, 1] [1, 2, 4]
        [2, 3] [0, 3]
    """

    folds: int = 1
    images: int | None = None
    captions_per_image: int | None = None
    judgements: str | None = None
    probes: bool = False

    def __post_init__(self) -> None:
        check_count(folds=self.folds)
        for name in ("images", "captions_per_image"):
            if (value := getattr(self, name)) is not None:
                check_count(**{name: value})

    def split(self, image_ids: Tensor, text_image_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rows of the images and of the captions of each fold.

        Args:
            image_ids: ``(n,)`` integers in the order of the split; each once, if there are several
                folds.
            text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.

        Returns:
            One pair of int64 tensors per fold, on the device of ``image_ids``.

        Raises:
            InputError: what is given does not fit the protocol.
        """
        image_ids = integer_vector("image_ids", image_ids)
        owners = integer_vector("text_image_ids", text_image_ids, device=image_ids.device)
        count = len(image_ids)
        if self.images not in (None, count):
            raise InputError(f"the gallery has {count} images; the protocol expects {self.images}")
        if self.captions_per_image is not None:
            found = matching_pairs(image_ids, owners)[:, 0].bincount(minlength=count)
            wrong = (found != self.captions_per_image).nonzero()
            if len(wrong):
                row = int(wrong[0])
                raise InputError(
                    f"image id {int(image_ids[row])} has {int(found[row])} captions; the protocol "
                    f"expects {self.captions_per_image}"
                )
        rows, columns = (torch.arange(len(ids), device=ids.device) for ids in (image_ids, owners))
        if self.folds == 1:
            return [(rows, columns)]
        if count % self.folds:
            raise InputError(f"folds is {self.folds}; expected a divisor of the {count} images")
        if len(image_ids.unique()) < count:
            raise InputError("image_ids holds an id twice; expected each once, or folds share it")
        parts = chunks(count, count // self.folds)
        return [(rows[part], columns[torch.isin(owners, image_ids[part])]) for part in parts]


#: The protocols of the field, by name. F30K and COCO have five captions per image in all of them.
PROTOCOLS = {
    "f30k-1k": Protocol(images=1000, captions_per_image=5),
    "coco-5k": Protocol(images=5000, captions_per_image=5),
    "coco-1k": Protocol(folds=5, images=5000, captions_per_image=5),
    "cxc": Protocol(images=5000, captions_per_image=5, judgements="cxc"),
    "eccv": Protocol(images=5000, captions_per_image=5, judgements="eccv"),
    "probes": Protocol(probes=True),
}


def find_protocol(protocol: Protocol | str | int | None) -> Protocol:
    """The protocol of a name of :data:`PROTOCOLS`, or of a number of folds of any split.

    None is the whole gallery.

    Raises:
        InputError: an unknown name, or a number below 1.

    Example:
        >>> find_protocol("coco-1k").folds, find_protocol(3)
        (5, Protocol(folds=3, images=None, captions_per_image=None, judgements=None, probes=False))
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol is None:
        return Protocol()
    if isinstance(protocol, int):
        return Protocol(folds=protocol)
    check_choice("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


def protocol_name(protocol: Protocol | str | int | None) -> str | None:
    """How a protocol is named beside its numbers; None where the whole gallery is searched.

    Example:
        >>> protocol_name("coco-5k"), protocol_name(3), protocol_name(Protocol())
        ('coco-5k', '3 folds', None)
    """
    found = find_protocol(protocol)
    known = [name for name, one in PROTOCOLS.items() if one == found]
    return known[0] if known else f"{found.folds} folds" if found.folds > 1 else None


def check_protocol_files(protocol: Protocol, files: object) -> None:
    """Raise if there are files of judgements and a protocol that has none.

    Raises:
        InputError: with the protocols that have some.
    """
    if files is not None and protocol.judgements is None:
        known = [name for name, one in PROTOCOLS.items() if one.judgements is not None]
        raise InputError(
            f"protocol_files is given for the protocol {protocol_name(protocol)!r}, which has no "
            f"judgements; expected one of {', '.join(map(repr, known))}"
        )
