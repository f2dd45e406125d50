"""The peers as matchers: pooled heads with a loss, word-to-region attention, and linear CCA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers.generalised_pooling import GeneralisedPooling
from itmkit.data import Batch, Images, Texts
from itmkit.nn import CrossAttentionSimilarity, RegionProjection, StoredTokens, l2_normalize
from itmkit.retrieval import Encoding
from itmkit.systems import Matcher
from itmkit.systems.matcher import cosine_scores


def mean_of_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean ``(B, D)`` of the real tokens ``(B, N, D)``."""
    if mask is None:
        return tokens.mean(1)
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class PooledHeads(Matcher):
    """Mean features of either side, a small head each, and the cosine.

    With :class:`~itmkit.losses.InfoNCELoss` the plainest contrastive baseline, with
    :class:`~itmkit.losses.TripletLoss` and its hardest negatives VSE++ (Faghri et al., BMVC 2018).

    Args:
        loss: any loss of scores.
        image_dim: width of the image features.
        text_dim: width of the token features of the captions.
        dim: width D of the vectors.
        dropout: of the image features and of the text features, in [0, 1).
        **kwargs: see :class:`Matcher`.
    """

    def __init__(
        self,
        loss: nn.Module,
        image_dim: int,
        text_dim: int,
        *,
        dim: int = 512,
        dropout: tuple[float, float] = (0.5, 0.1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.score_loss = loss
        self.warm_up(score_loss=loss)
        self.image_encoder = RegionProjection(image_dim, dim, dropout=dropout[0])
        self.text_encoder = StoredTokens(text_dim, dim, dropout=dropout[1])

    def encode_image(self, images: Images) -> Encoding:
        pooled = mean_of_tokens(images.features, images.mask)[:, None]
        return Encoding(vector=l2_normalize(self.image_encoder(pooled).tokens[:, 0]))

    def encode_text(self, texts: Texts) -> Encoding:
        pooled = mean_of_tokens(texts.inputs, texts.mask)[:, None]
        return Encoding(vector=l2_normalize(self.text_encoder(pooled).tokens[:, 0]))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        scores, positives = self.batch_scores(batch)
        self.choose_negatives()
        return {"loss": self.score_loss(scores, positives)}


class VSEInfinity(PooledHeads):
    """Heads on every token, then generalised pooling (Chen et al., CVPR 2021).

    Args:
        loss: any loss of scores.
        **kwargs: see :class:`PooledHeads`.
    """

    def __init__(self, loss: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(loss, *args, **kwargs)
        self.image_pool, self.text_pool = GeneralisedPooling(), GeneralisedPooling()

    def encode_image(self, images: Images) -> Encoding:
        tokens, mask = self.image_encoder(images.features, images.mask)
        return Encoding(vector=l2_normalize(self.image_pool(tokens, mask)))

    def encode_text(self, texts: Texts) -> Encoding:
        tokens, mask = self.text_encoder(texts.inputs, texts.mask)
        return Encoding(vector=l2_normalize(self.text_pool(tokens, mask)))


class SCAN(PooledHeads):
    """Every word attends to the cells of the image (Lee et al., ECCV 2018, t2i, mean of words).

    Args:
        loss: any loss of scores.
        **kwargs: see :class:`PooledHeads`.
    """

    def __init__(self, loss: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(loss, *args, **kwargs)
        self.similarity = CrossAttentionSimilarity()

    def encode_image(self, images: Images) -> Encoding:
        tokens, mask = self.image_encoder(images.features, images.mask)
        return Encoding(tokens=l2_normalize(tokens), mask=mask)

    def encode_text(self, texts: Texts) -> Encoding:
        tokens, mask = self.text_encoder(texts.inputs, texts.mask)
        return Encoding(tokens=l2_normalize(tokens), mask=mask)

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        scores: Tensor = self.similarity(images.tokens, texts.tokens, images.mask, texts.mask)
        return scores


class CCA(Matcher):
    """Linear canonical correlation analysis of mean features, in closed form.

    The directions are scaled by a power of their correlation (Gong et al., A Multi-View Embedding
    Space for Modeling Internet Images, Tags, and their Semantics, IJCV 2014).

    Args:
        dim: number of directions that are kept.
        ridge: added to the diagonal of the covariance of the image features and of that of the text
            features, as a share of its mean.
        power: of the correlations.
    """

    def __init__(
        self, *, dim: int = 128, ridge: tuple[float, float] = (2.0, 0.1), power: float = 0.5
    ) -> None:
        super().__init__()
        self.dim, self.ridge, self.power = dim, ridge, power
        self.image_side = self.text_side = _Projection(torch.zeros(()), torch.zeros(()))

    def fit(self, batches: Iterable[Batch]) -> None:
        """Find the directions, every caption a pair with its image.

        Args:
            batches: evaluation batches of the split to train on.
        """
        images, texts = [], []
        for batch in batches:
            row = (batch.text_image_ids[:, None] == batch.image_ids).int().argmax(1)
            images.append(mean_of_tokens(batch.images.features, batch.images.mask)[row])
            texts.append(mean_of_tokens(batch.texts.inputs, batch.texts.mask))
        image, text = torch.cat(images).double(), torch.cat(texts).double()
        means = image.mean(0), text.mean(0)
        image, text = image - means[0], text - means[1]
        white = _whitening(image, self.ridge[0]), _whitening(text, self.ridge[1])
        cross = white[0] @ (image.T @ text / len(text)) @ white[1]
        left, correlation, right = torch.linalg.svd(cross, full_matrices=False)
        scale = correlation[: self.dim] ** self.power
        self.image_side = _Projection(means[0], white[0] @ left[:, : self.dim] * scale)
        self.text_side = _Projection(means[1], white[1] @ right.T[:, : self.dim] * scale)

    def encode_image(self, images: Images) -> Encoding:
        return self.image_side(mean_of_tokens(images.features, images.mask))

    def encode_text(self, texts: Texts) -> Encoding:
        return self.text_side(mean_of_tokens(texts.inputs, texts.mask))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError("CCA has a closed form: call fit")


class _Projection(NamedTuple):
    mean: Tensor
    directions: Tensor

    def __call__(self, features: Tensor) -> Encoding:
        return Encoding(vector=l2_normalize((features - self.mean) @ self.directions).float())


def _whitening(centred: Tensor, ridge: float) -> Tensor:
    """The inverse square root ``(D, D)`` of the covariance of ``(n, D)``."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    whitening: Tensor = (vectors * (values + ridge * values.mean()).rsqrt()) @ vectors.T
    return whitening
