"""What a student learns from its momentum teacher: similarities, or features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import (
    InputError,
    check_choice,
    check_floating,
    check_non_negative,
    check_pairs,
    check_positive,
    check_shape,
    check_share,
    integer_vector,
)
from itmkit.losses.scores import Costs, Reduction, reduced
from itmkit.losses.tiles import WHOLE, Candidates, sums_of_costs
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize


def similarity_distillation_loss(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    image_ids: Tensor | None = None,
    queue_image: Tensor | None = None,
    queue_text: Tensor | None = None,
    queue_ids: Tensor | None = None,
    *,
    temperature: float = 0.07,
    alpha: float = 0.4,
    reduction: Reduction = "mean",
) -> Tensor:
    """The similarity part of :class:`MomentumDistillationLoss`, where its arguments are.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(4, 8), torch.randn(4, 8)
        >>> similarity_distillation_loss(image, text, image, text)
        tensor(3.2949)
    """
    _check_numbers(temperature, alpha)
    check_choice("reduction", reduction, Reduction)
    check_pairs(image=image, text=text, teacher_image=teacher_image, teacher_text=teacher_text)
    image_candidates, text_candidates, ids, of_candidates = _candidates(
        teacher_image, teacher_text, image_ids, queue_image, queue_text, queue_ids
    )

    def costs(student: Tensor, teacher: Tensor, rows: slice) -> Costs:
        same = ids[rows, None] == of_candidates
        soft = (teacher / temperature).softmax(dim=1)
        targets = alpha * soft + (1 - alpha) * F.normalize(same.to(soft.dtype), p=1, dim=1)
        return Costs(-(targets * (student / temperature).log_softmax(dim=1)).sum(), len(student))

    total = at_least_float32(image).new_zeros(())
    for student, teacher, candidates in (
        (image, teacher_image, text_candidates),
        (text, teacher_text, image_candidates),
    ):
        others = [at_least_float32(one.detach()) for one in candidates]
        student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
        total = total + _of_cosines(costs, student, teacher, others).total
    return reduced(Costs(total / 2, len(image)), reduction)


def _candidates(
    teacher_image: Tensor,
    teacher_text: Tensor,
    image_ids: Tensor | None,
    queue_image: Tensor | None,
    queue_text: Tensor | None,
    queue_ids: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Images and captions of the batch and of the queue, the ids of the rows and of these all."""
    image_candidates, text_candidates = [teacher_image], [teacher_text]
    if (queue_image is None) != (queue_text is None):
        missing = "queue_image" if queue_image is None else "queue_text"
        raise InputError(f"{missing} is None; expected both queue_image and queue_text or neither")
    if queue_image is not None and queue_text is not None:
        check_floating(
            "(q, D)", teacher_image=teacher_image, queue_image=queue_image, queue_text=queue_text
        )
        queued = (len(queue_image), teacher_image.shape[1])
        check_shape(queued, queue_image=queue_image, queue_text=queue_text)
        image_candidates.append(queue_image)
        text_candidates.append(queue_text)
    candidates = sum(map(len, text_candidates))
    ids = _ids(len(teacher_image), candidates, image_ids, queue_ids, teacher_image.device)
    return image_candidates, text_candidates, *ids


def _of_cosines(
    costs: Callable[[Tensor, Tensor, slice], Costs],
    student: Tensor,
    teacher: Tensor,
    candidates: list[Tensor],
) -> Costs:
    """What the cosines of a student and of its teacher with some candidates cost."""
    if len(student) * sum(map(len, candidates)) <= WHOLE:
        with autocast_off(student):
            others = l2_normalize(torch.cat(candidates))
            taught = l2_normalize(teacher) @ others.T
            return costs(l2_normalize(student) @ others.T, taught, slice(0, len(student)))
    with autocast_off(student):
        known = Candidates(*candidates)

    def of_tile(scores: Tensor, rows: slice) -> Costs:
        with torch.no_grad():
            taught = known.cosines(teacher[rows])
        return costs(scores, taught, rows)

    places = range(1, 1 + len(candidates))
    return sums_of_costs(of_tile, [student, *candidates], [(0, places)])[0]


def feature_distillation_loss(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """The feature part of :class:`MomentumDistillationLoss`, where its arguments are; at least 0.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(4, 8), torch.randn(4, 8)
        >>> feature_distillation_loss(image, text, 2 * image, 2 * text)
        tensor(0.1554)
    """
    check_choice("reduction", reduction, Reduction)
    check_pairs(image=image, text=text, teacher_image=teacher_image, teacher_text=teacher_text)
    with autocast_off(image):
        total = at_least_float32(image).new_zeros(())
        for student, teacher in ((image, teacher_image), (text, teacher_text)):
            log_student = _log_softmax(student)
            log_teacher = _log_softmax(teacher.detach())
            total = total + (log_teacher.exp() * (log_teacher - log_student)).sum()
        return reduced(Costs(total / 2, len(image)), reduction)


def _log_softmax(vectors: Tensor) -> Tensor:
    """Log-softmax over channels that is finite for any finite vectors."""
    log_softmax = at_least_float32(vectors).log_softmax(dim=1)
    return log_softmax.clamp(min=torch.finfo(log_softmax.dtype).min)


def _ids(
    n: int,
    candidates: int,
    image_ids: Tensor | None,
    queue_ids: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The image of each row, and of each candidate: the rows and then the queue."""
    if queue_ids is not None and image_ids is None:
        raise InputError("image_ids is None, with queue_ids; expected the image of each row")
    if image_ids is None:
        image_ids = torch.arange(n, device=device)
    image_ids = integer_vector("image_ids", image_ids, n, device)
    if queue_ids is None:  # of no image of the batch
        queue_ids = (image_ids.max() + 1 if n else image_ids.new_zeros(())).repeat(candidates - n)
    queue_ids = integer_vector("queue_ids", queue_ids, candidates - n, device)
    return image_ids, torch.cat([image_ids, queue_ids])


def _check_numbers(temperature: float, alpha: float) -> None:
    check_positive(temperature=temperature)
    check_share(alpha=alpha)


class MomentumDistillationLoss(nn.Module):
    r"""What a student learns from its momentum teacher: similarities, features, or both.

    The similarity part is a contrastive loss with the teacher's similarities as soft targets, half
    the sum of both directions, of which image to text is

    .. math::

        q_i = \alpha \operatorname{softmax}(\hat v'_i \cdot C / \tau) + (1-\alpha)\, y_i,
        \qquad L_{i2t} = -\frac1n \sum_i q_i \cdot \log
        \operatorname{softmax}(\hat v_i \cdot C / \tau)

    where v is the student's and v' the teacher's vector, C the teacher's vectors of the other side
    (batch, then queue), and y shares a mass of 1 equally over the candidates of the same image. It
    takes vectors of any length: they are l2-normalised here.

    The feature part is the divergence of the vectors, as given, read as distributions over their D
    channels, averaged over the rows:

    .. math::

        L = \tfrac12 \big[ KL(\sigma(v') \,\|\, \sigma(v)) + KL(\sigma(t') \,\|\,
            \sigma(t)) \big], \qquad \sigma = \text{softmax over channels}

    Li et al., Align before Fuse (ALBEF), NeurIPS 2021, for the similarities; the released code of
    MATE has the features. A part of weight 0 is not computed.

    Args:
        temperature: τ of the similarity part, above 0.
        alpha: α, share of the teacher in the similarity targets, in [0, 1].
        similarity_weight: weight of the similarity part, at least 0.
        feature_weight: weight of the feature part, at least 0.
        reduction: ``"mean"`` over the rows, or their ``"sum"``.

    Shape:
        image, text ``(n, D)`` of the student, teacher_image, teacher_text ``(n, D)`` of the same
        rows; image_ids ``(n,)``, the image of each row, None when all differ; queue_image,
        queue_text ``(q, D)``, the teacher's vectors of earlier batches, and queue_ids ``(q,)``,
        their images, None when none of them is an image of the batch → ``()``. Ids are integers as
        a tensor, a list or an array. Teacher and queue get no gradient.

    Raises:
        InputError: for a number out of its range; in use, a wrong shape, one queue without the
            other, or ``queue_ids`` without a queue or without ``image_ids``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(4, 8), torch.randn(4, 8)
        >>> loss = MomentumDistillationLoss(feature_weight=0.5)
        >>> loss(image, text, 2 * image, 2 * text)
        tensor(3.3726)
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        alpha: float = 0.4,
        similarity_weight: float = 1.0,
        feature_weight: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, Reduction)
        _check_numbers(temperature, alpha)
        check_non_negative(similarity_weight=similarity_weight, feature_weight=feature_weight)
        self.temperature = temperature
        self.alpha = alpha
        self.similarity_weight = similarity_weight
        self.feature_weight = feature_weight
        self.reduction: Reduction = reduction

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        image_ids: Tensor | None = None,
        queue_image: Tensor | None = None,
        queue_text: Tensor | None = None,
        queue_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of n pairs; vectors of the teacher and of the queue get no gradient."""
        check_pairs(image=image, text=text, teacher_image=teacher_image, teacher_text=teacher_text)
        total = at_least_float32(image)[:0].sum() + at_least_float32(text)[:0].sum()  # 0
        if self.similarity_weight:
            total = total + self.similarity_weight * similarity_distillation_loss(
                image,
                text,
                teacher_image,
                teacher_text,
                image_ids,
                queue_image,
                queue_text,
                queue_ids,
                temperature=self.temperature,
                alpha=self.alpha,
                reduction=self.reduction,
            )
        else:  # what that would take is checked all the same
            _candidates(teacher_image, teacher_text, image_ids, queue_image, queue_text, queue_ids)
        if self.feature_weight:
            total = total + self.feature_weight * feature_distillation_loss(
                image, text, teacher_image, teacher_text, reduction=self.reduction
            )
        return total

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, alpha={self.alpha}, "
            f"similarity_weight={self.similarity_weight}, feature_weight={self.feature_weight}, "
            f"reduction={self.reduction!r}"
        )
