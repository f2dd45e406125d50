"""The pairs a second stage is trained on, against plain loops."""

import torch

from itmkit.systems.fusion_pairs import hardest_pairs, pairs_of_groups


def test_hardest_pairs_naive_loop_reference() -> None:
    scores, ids = torch.randn(7, 7), torch.tensor([0, 1, 2, 1, 4, 5, 4])
    pairs, compared = hardest_pairs(scores, ids, most=3)
    anchors, expected = [0, 2, 4], []
    for i in anchors:
        others = [j for j in range(7) if ids[j] != ids[i]]
        expected.append([[i, i], [i, max(others, key=lambda j, i=i: scores[i, j])]])
    for i in anchors:
        others = [j for j in range(7) if ids[j] != ids[i]]
        expected.append([[i, i], [max(others, key=lambda j, i=i: scores[j, i]), i]])
    assert pairs[compared].tolist() == expected
    assert len(pairs) == 9  # a true pair is scored once


def test_where_all_rows_are_of_one_image_the_pairs_taken_for_wrong_are_true() -> None:
    ids = torch.tensor([3, 3, 3])
    pairs, compared = hardest_pairs(torch.randn(3, 3), ids, None)
    assert compared.shape == (6, 2)
    assert (ids[pairs[:, 0]] == ids[pairs[:, 1]]).all()


def test_pairs_of_groups_are_spread_and_at_least_those_of_one_group() -> None:
    ids = torch.arange(12)
    for most, groups in ((None, [0, 1, 2, 3]), (6, [0, 2]), (2, [0])):
        pairs, compared = pairs_of_groups(ids, 3, most)
        assert len(pairs) == 9 * len(groups)
        assert sorted({row // 3 for row in pairs.flatten().tolist()}) == groups
        assert (pairs[compared] // 3).amax((1, 2)).equal((pairs[compared] // 3).amin((1, 2)))
