"""A system of one's own: a dual encoder as CLIP is one, trained by the command line.

Run, in this folder: itmkit fit --config own_system.yaml
"""

from typing import Any

from torch import Tensor, nn

from itmkit.data import Batch, Images, Texts
from itmkit.losses import InfoNCELoss
from itmkit.nn import ExternalSpatialAttention, l2_normalize
from itmkit.nn.contract import common_width
from itmkit.retrieval import Encoding
from itmkit.systems import Matcher, cosine_scores


class TwoTowers(Matcher):
    """The cosine of a pooled image and a pooled caption.

    Args:
        image_encoder: images to tokens ``(B, N, D)``.
        text_encoder: captions to tokens ``(B, L, D)``.
        contrast: loss of the scores; None: InfoNCE with a learnt temperature.
        **kwargs: see :class:`itmkit.systems.Matcher`.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        contrast: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        dim = common_width(image_encoder=image_encoder, text_encoder=text_encoder)
        self.image_encoder, self.image_pool = image_encoder, ExternalSpatialAttention(dim)
        self.text_encoder, self.text_pool = text_encoder, ExternalSpatialAttention(dim)
        self.contrast = contrast or InfoNCELoss(learnt=True)

    def encode_image(self, images: Images) -> Encoding:
        tokens = self.image_encoder(images.features, images.mask)
        return Encoding(vector=l2_normalize(self.image_pool(*tokens)))

    def encode_text(self, texts: Texts) -> Encoding:
        tokens = self.text_encoder(texts.inputs, texts.mask)
        return Encoding(vector=l2_normalize(self.text_pool(*tokens)))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        scores, positives = self.batch_scores(batch)  # of all processes
        return {"loss": self.contrast(scores, positives)}
