"""TVRN's scores one pair at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.nn import RefinedSimilarity, l2_normalize
from itmkit.nn.refinement.visual_refinement import RefinedImage


def pair_loop(
    similarity: RefinedSimilarity, images: RefinedImage, captions: list[Tensor]
) -> Tensor:
    """Logits ``(n, m)`` of TVRN, each pair computed from the start, as its released code does.

    Args:
        similarity: with graph reasoning.
        images: ``n`` refined images without padding.
        captions: ``m`` times ``(L_j, D)``, unit vectors.
    """
    textual, attention = similarity.textual, similarity.textual.attention
    gru = nn.GRU(textual.dim, textual.dim, batch_first=True)
    for name, part in {"ih": textual.gru.input, "hh": textual.gru.hidden}.items():
        setattr(gru, f"weight_{name}_l0", part.weight)
        setattr(gru, f"bias_{name}_l0", part.bias)

    def attend(query: Tensor, context: Tensor) -> Tensor:
        scores = F.leaky_relu(attention.key(context) @ attention.query(query).T, 0.1)
        weights = (attention.smooth * F.normalize(scores, dim=1).T).softmax(1)
        return F.normalize(weights @ context, dim=1)

    rows = []
    for i in range(len(images.vector)):
        for caption in captions:
            regions, context = images.tokens[i], images.context[i]
            visual = attend(attend(caption, caption), context)
            out, _ = gru(torch.cat([caption, visual])[None])
            words = F.normalize(out[0] + torch.cat([caption, caption]), dim=1)
            vector = textual.pool(words[None])[0]
            scores = F.leaky_relu(regions @ words.T, 0.1)
            weights = (similarity.smooth * F.normalize(scores, dim=1).T).softmax(1)
            found = F.normalize(weights @ regions, dim=1)
            local = similarity.local_similarity((words - found).square())
            whole = similarity.global_similarity((images.vector[i] - vector).square())
            nodes = l2_normalize(torch.cat([whole[None], local]))
            rows.append(similarity.logit(similarity.reasoning(nodes[None])[0]))
    return torch.cat(rows).view(len(images.vector), len(captions))
