"""Some real processes (gloo) run this file as a script and share the work of an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.retrieval import Encoding, Gallery, evaluate

# Images, captions, candidates, chunk size. Blocks off the diagonal have no match, so of three
# processes two have none; the last case has fewer blocks than processes.
CASES = {
    "global": (23, 61, 0, 7),
    "rerank": (23, 61, 5, 7),
    "all_candidates": (9, 20, 50, 4),
    "by_relevance": (12, 12, 3, 5),
    "diagonal": (8, 8, 0, 4),
    "few_blocks": (6, 6, 2, 8),
}


class Counting(nn.Module):
    """Cosine scores with many ties, another order as second stage; notes the pairs that it sees."""

    device = torch.device("cpu")
    rerank_weight = 0.5

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.rerank_top_k = top_k
        self.scored: list[Tensor] = []
        self.reranked: list[Tensor] = []

    def encode_image(self, images: Any) -> Encoding:
        raise NotImplementedError

    encode_text = encode_image

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        self.scored.append(torch.cartesian_prod(images.number, texts.number))
        return (4 * images.vector @ texts.vector.T).round() / 4

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        rows, columns = pairs.unbind(1)
        self.reranked.append(torch.stack([images.number[rows], texts.number[columns]], 1))
        return (images.vector[rows] * texts.vector[columns]).sum(1)


def measured(case: str, *, shared: bool) -> dict[str, Any]:
    n, m, top_k, chunk_size = CASES[case]
    g = torch.Generator().manual_seed(7)
    images = Encoding(vector=torch.randn(n, 4, generator=g), number=torch.arange(n))
    texts = Encoding(vector=torch.randn(m, 4, generator=g), number=torch.arange(m))
    owners = torch.arange(m)[torch.randperm(m, generator=g)] % n
    gallery = Gallery(images, texts, torch.arange(n), owners, torch.arange(m))
    relevance = None
    if case == "by_relevance":
        relevance = torch.eye(n, dtype=torch.bool) | (torch.rand(n, m, generator=g) < 0.2)
    model = Counting(top_k)
    recall = evaluate(model, gallery, relevance=relevance, chunk_size=chunk_size, shared=shared)
    return {"recall": recall, "scored": model.scored, "reranked": model.reranked}


def run(folder: Path) -> None:
    rank = join(folder)
    torch.save({case: measured(case, shared=True) for case in CASES}, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module", params=[2, 3])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, size=request.param)
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_ddp_recall_is_that_of_one_process(found: list[dict[str, Any]], case: str) -> None:
    expected = measured(case, shared=False)["recall"]
    assert 0 < expected["rsum"] < 600
    for own in found:
        assert own[case]["recall"] == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", ["scored", "reranked"])
def test_ddp_each_block_is_scored_once(found: list[dict[str, Any]], case: str, stage: str) -> None:
    """Whole blocks, so that each pair is scored beside the same others."""
    alone = [block.tolist() for block in measured(case, shared=False)[stage]]
    shares = [[block.tolist() for block in own[case][stage]] for own in found]
    if case == "few_blocks":  # each does all
        assert all(share == alone for share in shares)
    else:
        assert sorted(block for share in shares for block in share) == sorted(alone)
        assert max(sum(map(len, share)) for share in shares) <= 0.7 * sum(map(len, alone))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
