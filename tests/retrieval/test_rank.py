"""Evaluation and re-ranking against loops over queries."""

from __future__ import annotations

import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from score_table import Table, gallery, naive_order

from itmkit.metrics import Judgements, Protocol, bootstrap_recall
from itmkit.metrics.functional import cross_modal_recall, five_fold_recall, recall_from_ranks
from itmkit.retrieval.encode import Gallery
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.rank import evaluate, rank_queries
from itmkit.retrieval.score import score_matrix


def owners_of(n, extra, g):
    owners = torch.cat([torch.arange(n), torch.randint(n, (extra,), generator=g)])
    return owners[torch.randperm(len(owners), generator=g)]


def naive_rank(scores, pairs, relevant, candidates, weight):
    """Non-matching items in front of, or tied with, the best match."""
    items = range(len(scores))
    left_out = max((scores[j] for j in items if j not in candidates), default=-float("inf"))
    blended = {j: (1 - weight) * scores[j] + weight * pairs[j] for j in candidates}
    secure = [blended[j] for j in candidates if relevant[j] and scores[j] > left_out]
    if secure:
        return sum(blended[j] >= max(secure) for j in candidates if not relevant[j])
    best = max(scores[j] for j in items if relevant[j])
    return sum(scores[j] >= best for j in items if not relevant[j])


def naive_evaluate(scores, pairs, relevant, k, weight):
    sides = []
    for s, p, r in ((scores, pairs, relevant), (scores.T, pairs.T, relevant.T)):
        candidates = [
            sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in s.tolist()
        ]
        lists = zip(s.tolist(), p.tolist(), r.tolist(), candidates, strict=True)
        ranks = [naive_rank(*query, weight) for query in lists if any(query[2])]
        sides.append(torch.tensor(ranks))
    return recall_from_ranks(*sides)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 7),
    extra=st.integers(0, 8),
    k=st.integers(1, 20),
    weight=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_naive_loop_reference_rerank(seed, n, extra, k, weight):
    """Without ties a rank is the place of the first match in the query's sorted list."""
    g = torch.Generator().manual_seed(seed)
    owners = owners_of(n, extra, g)
    m = len(owners)
    # Whole numbers plus different 1024ths: no two blends are equal, and all are exact in fp32.
    scores, pairs, fractions = (
        torch.randperm(n * m, generator=g).view(n, m).float() for _ in range(3)
    )
    pairs += fractions / 1024
    relevant = torch.arange(n)[:, None] == owners[None]
    sides = []
    for s, p, r in ((scores, pairs, relevant), (scores.T, pairs.T, relevant.T)):
        orders = [naive_order(s[i].tolist(), p[i].tolist(), k, weight) for i in range(len(s))]
        places = [[bool(r[i, j]) for j in order].index(True) for i, order in enumerate(orders)]
        sides.append(torch.tensor(places))
    matcher = Table(scores, pairs, top_k=k, weight=weight)
    assert evaluate(matcher, gallery(owners, n)) == pytest.approx(recall_from_ranks(*sides))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 7),
    extra=st.integers(0, 8),
    k=st.integers(1, 20),
    levels=st.integers(1, 40),
    weight=st.sampled_from([0.25, 0.5, 1.0]),
    chunk_size=st.sampled_from([1, 2, 3, 256]),
    without=st.integers(0, 2),
)
def test_naive_loop_reference_ties(seed, n, extra, k, levels, weight, chunk_size, without):
    g = torch.Generator().manual_seed(seed)
    owners = owners_of(n, extra, g)
    n += without  # images without captions, which are no queries
    scores = torch.randint(levels, (n, len(owners)), generator=g).float() - levels // 2
    scores[scores == 0] *= torch.randn((), generator=g).sign()  # -0 is tied with 0
    pairs = torch.randint(levels, (n, len(owners)), generator=g).float()
    relevant = torch.arange(n)[:, None] == owners[None]
    result = evaluate(
        Table(scores, pairs), gallery(owners, n), top_k=k, weight=weight, chunk_size=chunk_size
    )
    assert result == pytest.approx(naive_evaluate(scores, pairs, relevant, k, weight))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 7),
    m=st.integers(1, 15),
    k=st.integers(0, 20),
    levels=st.integers(1, 40),
    share=st.sampled_from([0.05, 0.3, 0.8]),
)
def test_naive_loop_reference_judgements(seed, n, m, k, levels, share):
    """Images and captions without a match are searched, but are no queries."""
    g = torch.Generator().manual_seed(seed)
    scores, pairs = (torch.randint(levels, (n, m), generator=g).float() for _ in range(2))
    relevant = torch.rand(n, m, generator=g) < share
    relevant[int(torch.randint(n, (), generator=g)), 0] = True
    own = gallery(torch.randint(n, (m,), generator=g), n)
    judged = Judgements(relevant.nonzero())
    table = Table(scores, pairs, top_k=k, weight=0.5)
    result = evaluate(table, own, relevance=judged, lists=False)
    assert result == pytest.approx(naive_evaluate(scores, pairs, relevant, k, 0.5))


@pytest.mark.parametrize(("k", "weight"), [(1, 1.0), (3, 0.5), (100, 1.0)])
def test_constant_scores_find_nothing(k, weight):
    """Neither stage may gain from equal scores, wherever the candidates happen to come from."""
    n = 12
    owners = torch.arange(n).repeat_interleave(5)
    constant = torch.zeros(n, 5 * n)
    result = evaluate(Table(constant, constant), gallery(owners, n), top_k=k, weight=weight)
    assert result["rsum"] == 0
    assert result["t2i_meanr"] == n
    # A perfect second stage cannot help candidates that are there by luck only.
    perfect = (torch.arange(n)[:, None] == owners[None]).float()
    lucky = evaluate(Table(constant, perfect), gallery(owners, n), top_k=k, weight=weight)
    assert lucky["rsum"] == (600 if k == 100 else 0)


def test_all_candidates_and_full_weight_rank_by_pairs_alone():
    owners = torch.arange(6).repeat_interleave(2)
    scores, pairs = torch.randn(6, 12), torch.randn(6, 12)
    result = evaluate(Table(scores, pairs, top_k=12, weight=1.0), gallery(owners, 6))
    assert result == cross_modal_recall(pairs, torch.arange(6), owners)


def test_no_weight_or_no_candidates_is_the_global_stage():
    owners = torch.arange(6).repeat_interleave(2)
    scores, pairs = torch.randn(6, 12), torch.full((6, 12), torch.nan)
    plain = cross_modal_recall(scores, torch.arange(6), owners)
    matcher = Table(scores, pairs, top_k=4, weight=0.5)
    assert evaluate(Table(scores), gallery(owners, 6)) == plain
    assert evaluate(matcher, gallery(owners, 6), top_k=0) == plain
    assert evaluate(matcher, gallery(owners, 6), weight=0.0) == plain
    tiny = Table(scores, torch.zeros(6, 12), top_k=4, weight=1e-9)
    assert evaluate(tiny, gallery(owners, 6)) == plain


def test_relevance_replaces_ids():
    scores, pairs = torch.randn(5, 9), torch.randn(5, 9)
    owners = torch.arange(9) % 5
    relevance = (torch.rand(5, 9) < 0.3) | (torch.arange(5)[:, None] == owners)
    result = evaluate(
        Table(scores, pairs, top_k=3, weight=0.5), gallery(owners, 5), relevance=relevance
    )
    assert result == pytest.approx(naive_evaluate(scores, pairs, relevance, 3, 0.5))


def test_pairs_are_scored_once_and_in_bounded_chunks():
    n, m, k = 8, 24, 3
    scores, pairs = torch.randn(n, m), torch.randn(n, m)
    matcher = Table(scores, pairs, top_k=k, weight=0.5)
    evaluate(matcher, gallery(torch.arange(m) % n, n), chunk_size=5)
    wanted = {(i, j) for i in range(n) for j in scores[i].topk(k).indices.tolist()}
    wanted |= {(i, j) for j in range(m) for i in scores[:, j].topk(k).indices.tolist()}
    assert len(matcher.asked) == len(set(matcher.asked))
    assert set(matcher.asked) == wanted
    assert matcher.largest <= 5
    assert max(max(block) for block in matcher.blocks) <= 5


@pytest.mark.parametrize("scores", [torch.randn(8, 8), torch.zeros(8, 8)])
@pytest.mark.parametrize("chunk_size", [3, 256])
def test_truth_does_not_reach_the_matcher(scores, chunk_size):
    """Other owners of the captions: the matcher is asked for exactly the same pairs."""
    asked = []
    for owners in (torch.arange(8), torch.randperm(8)):
        matcher = Table(scores, torch.randn(8, 8), top_k=3, weight=0.5)
        evaluate(matcher, gallery(owners, 8), chunk_size=chunk_size)
        asked.append(matcher.asked)
    assert asked[0] == asked[1]


class Cosine(Table):
    """Products of vectors; it counts the scores that are alive and those it ever gave."""

    def __init__(self):
        super().__init__(None)
        self.given, self.alive, self.most = 0, 0, 0

    def score(self, images, texts):
        block = images.vector @ texts.vector.T
        weakref.finalize(block, self.drop, block.numel())
        self.given += block.numel()
        self.alive += block.numel()
        self.most = max(self.most, self.alive)
        return block

    def drop(self, count):
        self.alive -= count


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("whole_numbers", [True, False])
def test_scores_are_not_kept(in_order, whole_numbers):
    """The numbers of the whole matrix, ties included, with a part of its memory."""
    n, m, chunk_size = 60, 300, 8
    owners = torch.arange(n).repeat_interleave(5)
    image, text = torch.randn(n, 16), torch.randn(m, 16)
    if whole_numbers:  # products are exact, and many are equal
        image, text = image.round(), text.round()
    if not in_order:
        owners = owners[torch.randperm(m)]
    matcher = Cosine()
    own = Gallery(
        Encoding(vector=image), Encoding(vector=text), torch.arange(n), owners, torch.arange(m)
    )
    result = evaluate(matcher, own, chunk_size=chunk_size)
    assert matcher.given == n * m
    assert matcher.most <= (n + m + chunk_size) * chunk_size < n * m / 6
    order = owners.argsort(stable=True)  # that of the blocks: products round alike
    scores = score_matrix(matcher, own.images, own.texts[order], chunk_size=chunk_size)
    assert result == cross_modal_recall(scores, own.image_ids, owners[order])


def test_unrelated_vectors_reach_chance():
    n = 300
    image, text = torch.randn(n, 16), torch.randn(n, 16)
    second = torch.randn(n, n)
    matcher = Table(image @ text.T, second, top_k=16, weight=0.5)
    result = evaluate(matcher, gallery(torch.arange(n), n))
    for side in ("i2t", "t2i"):
        assert result[f"{side}_r10"] < 8  # chance is 3.3
        assert n * 0.4 < result[f"{side}_meanr"] < n * 0.6


def test_rerank_helps_only_among_the_candidates():
    scores = torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    perfect = torch.eye(3) * 10
    ids = torch.arange(3)
    result = evaluate(Table(scores, perfect, top_k=2, weight=0.5), gallery(ids, 3))
    # Image 1 has its caption second: found. Image 2 has it third: it stays third.
    assert result["i2t_r1"] == pytest.approx(200 / 3)
    assert result["i2t_meanr"] == pytest.approx((1 + 1 + 3) / 3)


def test_error():
    scores = torch.randn(4, 4)
    matcher, own = Table(scores, scores), gallery(torch.arange(4), 4)
    with pytest.raises(ValueError, match="top_k is -1; expected 0 or more"):
        evaluate(matcher, own, top_k=-1)
    with pytest.raises(ValueError, match=r"weight is 1.5; expected a number in \[0, 1\]"):
        evaluate(matcher, own, top_k=1, weight=1.5)
    with pytest.raises(ValueError, match=r"weight is 0\.5, but rerank_top_k of the model is 0"):
        evaluate(matcher, own, weight=0.5)
    with pytest.raises(ValueError, match=r"caption 3 \(image id 4\) has no match"):
        evaluate(matcher, gallery(torch.tensor([1, 1, 2, 4]), 4))
    with pytest.raises(ValueError, match="there are 4 images and 0 captions; expected b"):
        evaluate(matcher, gallery(torch.tensor([], dtype=torch.int64), 4))


def test_error_scores():
    scores = torch.randn(4, 4)
    broken = scores.clone()
    broken[2, 1] = torch.nan
    own = gallery(torch.arange(4), 4)
    with pytest.raises(ValueError, match=r"scores\[2, 1\] is nan"):
        evaluate(Table(broken, scores), own)
    with pytest.raises(ValueError, match="of image row 2 and caption row 1 is nan"):
        evaluate(Table(scores, broken), own, top_k=4, weight=0.5)
    matcher = Table(scores, scores)
    matcher.score = lambda images, texts: torch.zeros(len(texts))
    with pytest.raises(ValueError, match=r"score gives the shape \(4,\); expected \(4, 4\)"):
        evaluate(matcher, own)


@pytest.mark.parametrize(("k", "weight"), [(0, 0.0), (3, 0.5)])
@pytest.mark.parametrize("with_relevance", [False, True])
def test_folds(k, weight, with_relevance):
    """Each fold is a gallery of its own: as if the others were not there."""
    n, m, folds = 12, 30, 3
    owners = torch.cat([torch.arange(n), torch.randint(n, (m - n,))])[torch.randperm(m)]
    scores, pairs = torch.randn(n, m), torch.randn(n, m)
    relevant = torch.arange(n)[:, None] == owners
    if with_relevance:
        relevant |= torch.rand(n, m) < 0.1
    recalls = []
    for fold in range(folds):
        rows = torch.arange(fold * 4, fold * 4 + 4)
        columns = torch.tensor([j for j in range(m) if owners[j] in rows])
        own = (table[rows][:, columns] for table in (scores, pairs, relevant))
        recalls.append(naive_evaluate(*own, k, weight))
    found = evaluate(
        Table(scores, pairs),
        gallery(owners, n),
        protocol=Protocol(folds=folds),
        relevance=relevant if with_relevance else None,
        top_k=k,
        weight=weight,
        chunk_size=3,
    )
    expected = {key: sum(one[key] for one in recalls) / folds for key in recalls[0]}
    for number, recall in enumerate(recalls, 1):
        expected |= {f"fold_{number}/{key}": value for key, value in recall.items()}
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)


def test_folds_equal_those_of_a_matrix():
    owners = torch.arange(20).repeat_interleave(5)
    scores, ids = torch.randn(20, 100), torch.arange(20)
    found = evaluate(Table(scores), gallery(owners, 20), protocol=Protocol(folds=5))
    for key, value in five_fold_recall(scores, ids, owners).items():
        assert found[key] == pytest.approx(value)


def test_rank_queries():
    """Ranks stand beside the ids of their queries; images without captions are none."""
    owners = torch.tensor([1, 3, 3, 0])
    scores = torch.eye(4)[:, owners]
    (found,) = rank_queries(Table(scores), gallery(owners, 4))
    assert found.image_ids.tolist() == [0, 1, 3]
    assert found.text_image_ids.tolist() == owners.tolist()
    assert found.i2t.tolist() == [0, 0, 0]
    assert found.recall() == evaluate(Table(scores), gallery(owners, 4))
    assert bootstrap_recall(found)["rsum"] == (600, 600)


def test_error_protocol():
    own = gallery(torch.arange(4), 4)
    with pytest.raises(ValueError, match="the gallery has 4 images; the protocol expects 5000"):
        evaluate(Table(torch.randn(4, 4)), own, protocol="coco-1k")
    with pytest.raises(ValueError, match="protocol is 'coco'; expected one of"):
        evaluate(Table(torch.randn(4, 4)), own, protocol="coco")
