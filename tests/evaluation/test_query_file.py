"""Ranks, best items and hardest negatives of every query, and what ir-measures makes of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from score_table import Table, gallery, naive_order

from itmkit.checks import InputError
from itmkit.evaluation import read_queries, write_queries, write_trec
from itmkit.metrics import Judgements, Protocol, QueryRanks
from itmkit.metrics.query_ranks import recall_of_folds
from itmkit.retrieval import rank_queries

N, M, KEEP = 8, 20, 12
NAMES = [f"{row} of 8.jpg" for row in range(N)]
CAPTIONS = [f"caption {row}" for row in range(M)]
OWNERS = torch.tensor([*range(4), 0, 0, *range(7), *range(6), 1])  # the last image has none


def ranked(top_k: int = 0, folds: int = 1) -> tuple[Table, list[QueryRanks]]:
    """Scores of which no two are equal."""
    g = torch.Generator().manual_seed(3)
    scores, pairs, fractions = (torch.randperm(N * M, generator=g).view(N, M) for _ in range(3))
    table = Table(scores.float(), pairs + fractions / 1024, top_k=top_k, weight=0.5)
    protocol = Protocol(folds=folds)
    return table, rank_queries(table, gallery(OWNERS, N), protocol=protocol, keep=KEEP)


@pytest.mark.parametrize("top_k", [0, 3, 50])
def test_naive_loop_reference(tmp_path: Path, top_k: int) -> None:
    table, folds = ranked(top_k)
    about = {"split": "a"}
    write_queries(tmp_path / "q.parquet", folds, NAMES, CAPTIONS, keep=KEEP, about=about)
    found = read_queries(tmp_path / "q.parquet")
    assert found.about == {"keep": KEEP, "split": "a"}
    rows = {(row["direction"], row["id"]): row for row in found.table.to_pylist()}
    assert len(rows) == N - 1 + M
    relevant = torch.arange(N)[:, None] == OWNERS
    sides = {
        "i2t": (table.scores, table.pairs, relevant),
        "t2i": (table.scores.T, table.pairs.T, relevant.T),
    }
    for (direction, query), row in rows.items():
        scores, pairs, match = (side[query].tolist() for side in sides[direction])
        order = naive_order(scores, pairs, top_k, 0.5)
        assert [one["id"] for one in row["best"]] == order[:KEEP]
        assert [one["match"] for one in row["best"]] == [match[j] for j in order[:KEEP]]
        wrong = [j for j in order if not match[j]]
        assert [one["id"] for one in row["negatives"]] == wrong[:KEEP]
        assert not any(one["match"] for one in row["negatives"])
        assert row["rank"] == 1 + [match[j] for j in order].index(True)
        best = next(j for j in order if match[j])
        blended = order.index(best) < top_k
        score = (scores[best] + pairs[best]) / 2 if blended else scores[best]
        assert row["score"] == score
        for one in (row, *row["best"], *row["negatives"]):
            of_text = (one is row) == (direction == "t2i")
            assert one["caption"] == (CAPTIONS[one["id"]] if of_text else None)
            assert one["image"] == NAMES[OWNERS[one["id"]] if of_text else one["id"]]


def test_ranks_are_read_again(tmp_path: Path) -> None:
    folds = rank_queries(Table(torch.eye(6) - 1), gallery(torch.arange(6), 6), protocol=2, keep=2)
    write_queries(tmp_path / "queries.parquet", folds, "abcdef", "ABCDEF", keep=2)
    again = read_queries(tmp_path).folds
    assert len(again) == 2
    for one, other in zip(folds, again, strict=True):
        for name in ("i2t", "t2i", "image_ids", "text_image_ids", "text_ids"):
            assert getattr(one, name).equal(getattr(other, name)), name


def test_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"queries.parquet is missing; expected what itmki"):
        read_queries(tmp_path)
    (tmp_path / "queries.parquet").write_text("no")
    with pytest.raises(InputError, match="does not hold the ranks of queries"):
        read_queries(tmp_path)
    _, folds = ranked()
    write_queries(tmp_path / "whole.parquet", folds, NAMES, CAPTIONS)
    whole = pq.read_table(tmp_path / "whole.parquet")
    place, count = whole.schema.get_field_index("rank"), len(whole)

    def with_ranks(values: list[object]) -> pa.Table:
        return whole.set_column(place, "rank", pa.array(values))

    for table, message in (
        (whole.drop_columns(["caption"]), "caption"),
        (whole.slice(0, 0), "it has no rows"),
        (whole.replace_schema_metadata({b"itmkit": b"[]"}), "does not say what was evaluated"),
        (whole.slice(0, N - 1), "expected queries of both directions"),
        (with_ranks([1] * (count - 1) + [None]), "'rank' has values of int64, 1 of them missing"),
        (with_ranks(["1"] * count), "'rank' has values of string"),
        (with_ranks([0] * count), "expected ranks and folds from 1"),
    ):
        pq.write_table(table, tmp_path / "queries.parquet")
        with pytest.raises(InputError, match=f"does not hold the ranks of queries: .*{message}"):
            read_queries(tmp_path)
    for names, captions, message in (
        (NAMES[:7], CAPTIONS, "names has 7; expected 8 or more, one an id"),
        (NAMES, CAPTIONS[:19], "captions has 19; expected 20 or more, one an id"),
    ):
        with pytest.raises(InputError, match=message):
            write_queries(tmp_path / "new", folds, names, captions)
    with pytest.raises(InputError, match="tag is None; expected one word"):
        write_trec(tmp_path / "new", folds, tag=None)
    ranks = QueryRanks(torch.zeros(1).long(), torch.zeros(1).long())
    for call in (
        lambda: write_queries(tmp_path / "new", ranks, ["a"], ["A"]),
        lambda: write_trec(tmp_path / "new", ranks),
    ):
        with pytest.raises(InputError, match="folds has no best items; expected those of rank_qu"):
            call()
    assert not (tmp_path / "new").exists()


def test_files_of_trec(tmp_path: Path) -> None:
    """Only judgements of queries; grades from 1; places from 1; scores that tell fp32 apart."""
    judged = Judgements(
        torch.tensor([[0, 0], [0, 2], [1, 1], [2, 2]]),
        torch.tensor([0.3, 1.6, 2.4, 3.0]),
        image_queries=torch.tensor([0, 1]),
        caption_queries=torch.tensor([2]),
    )
    scores = torch.tensor([[1.0, 2.0, 1.0000001], [3.0, 1 / 3, 0.0], [0.5, 0.25, 5.0]])
    table = Table(scores)
    (found,) = rank_queries(table, gallery(torch.arange(3), 3), relevance=judged, keep=2)
    write_trec(tmp_path, found, tag="mine")
    content = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert content["i2t.qrels"] == ["i0 0 t0 1", "i0 0 t2 2", "i1 0 t1 2"]
    assert content["t2i.qrels"] == ["t2 0 i0 2", "t2 0 i2 3"]
    assert content["i2t.run"][:3] == [
        "i0 Q0 t1 1 2 mine",
        "i0 Q0 t2 2 1.00000012 mine",
        "i0 Q0 t0 3 1 mine",
    ]
    assert content["t2i.run"][0] == "t2 Q0 i2 1 5 mine"


@pytest.mark.extras
@pytest.mark.parametrize(
    ("top_k", "folds", "graded"), [(0, 1, False), (3, 1, False), (0, 2, True), (3, 1, True)]
)
def test_ir_measures_agrees_where_nothing_ties(
    tmp_path: Path, top_k: int, folds: int, graded: bool
) -> None:
    measures = pytest.importorskip("ir_measures")
    owners = torch.arange(N).repeat_interleave(2)
    g = torch.Generator().manual_seed(5)
    scores, pairs = (torch.randperm(16 * N, generator=g).view(N, 16).float() for _ in range(2))
    table = Table(scores, pairs / 1024, top_k=top_k, weight=0.5)
    relevance = torch.arange(N)[:, None] == owners
    if graded:
        more = torch.randint(1, 4, (N, 16), generator=g)
        relevance = more * (relevance | (torch.rand(N, 16, generator=g) < 0.2))
    options = {"protocol": folds, "relevance": relevance, "lists": True}
    found = rank_queries(table, gallery(owners, N), keep=16, **options)
    write_trec(tmp_path, found)
    recall = recall_of_folds(found)
    for side in ("i2t", "t2i"):
        qrels = list(measures.read_trec_qrels(str(tmp_path / f"{side}.qrels")))
        run = list(measures.read_trec_run(str(tmp_path / f"{side}.run")))
        success = [measures.Success @ k for k in (1, 5, 10)]
        values = measures.calc_aggregate(success, qrels, run)
        for k, measure in zip((1, 5, 10), success, strict=True):
            assert 100 * values[measure] == pytest.approx(recall[f"{side}_r{k}"])
        lists = {"ndcg10": measures.nDCG @ 10, "rprecision": measures.Rprec}
        values = measures.calc_aggregate(list(lists.values()), qrels, run)
        for name, measure in lists.items():
            assert 100 * values[measure] == pytest.approx(recall[f"{side}_{name}"])
