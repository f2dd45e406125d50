"""Judgements: what matches by the ids of images and captions, with grades and chosen queries."""

from __future__ import annotations

import pytest
import torch

from itmkit.checks import InputError
from itmkit.metrics import Judgements
from itmkit.metrics.judgements import find_matches

IDS, TEXTS = torch.tensor([7, 3, 9]), torch.tensor([20, 10, 30, 40])
OWNERS = torch.tensor([3, 7, 9, 9])


def test_rows_of_a_gallery():
    judged = Judgements(
        torch.tensor([[3, 10], [7, 10], [8, 20], [9, 40], [3, 50]]),
        torch.tensor([1.0, 2.5, 4.0, 3.0, 5.0]),
        image_queries=torch.tensor([3, 7, 8]),
        caption_queries=torch.tensor([10, 20]),
    )
    found = find_matches(IDS, OWNERS, judged, text_ids=TEXTS)
    assert found.pairs.tolist() == [[1, 1], [0, 1], [2, 3]]
    assert found.grades.tolist() == [1.0, 2.5, 3.0]
    assert found.images.tolist() == [True, True, False]
    assert found.captions.tolist() == [False, True, False, False]


def test_all_that_have_a_match_are_queries_unless_told():
    found = find_matches(IDS, OWNERS, Judgements(torch.tensor([[9, 10], [9, 20]])), text_ids=TEXTS)
    assert found.images.tolist() == [False, False, True]
    assert found.captions.tolist() == [True, True, False, False]
    assert found.grades is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": torch.zeros(0, 2).long()}, r"pairs has the shape \(0, 2\); expected \(p, 2\)"),
        ({"pairs": torch.zeros(3).long()}, r"pairs has the shape \(3,\); expected \(p, 2\)"),
        ({"pairs": None}, "pairs is None; expected a tensor of numbers"),
        ({"pairs": {(0, 1): 3.0}}, "pairs is a dict; expected a tensor of numbers"),
        ({"pairs": [[0], [1, 2]]}, "pairs is a list of list; expected a tensor of numbers"),
        ({"grades": ["good"]}, "grades is a list of str; expected a tensor of numbers"),
        ({"pairs": torch.zeros(1, 2)}, "pairs is a torch.float32"),
        ({"pairs": torch.tensor([[1, 2], [1, 2]])}, "holds image 1 with caption 2 twice"),
        ({"grades": torch.tensor([0.0])}, "grades holds 0; expected numbers above 0"),
        ({"grades": torch.tensor([1.0, 1.0])}, "grades has"),
        ({"grades": torch.tensor([torch.inf])}, r"grades\[0\] is inf"),
        ({"image_queries": torch.tensor([0.5])}, "image_queries is a torch.float32"),
    ],
)
def test_error(arguments, message):
    with pytest.raises(InputError, match=message):
        Judgements(**{"pairs": torch.tensor([[1, 2]]), **arguments})


def test_judgements_of_another_gallery():
    with pytest.raises(InputError, match="relevance judges no pair of the gallery"):
        find_matches(IDS, OWNERS, Judgements(torch.tensor([[1, 2]])), text_ids=TEXTS)
    judged = Judgements(torch.tensor([[7, 10]]), image_queries=torch.tensor([3]))
    with pytest.raises(InputError, match="image_queries has no query with a match in the gallery"):
        find_matches(IDS, OWNERS, judged, text_ids=TEXTS)
    with pytest.raises(InputError, match="relevance is Judgements without text_ids"):
        find_matches(IDS, OWNERS, judged)
