from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses.adaptive_margin import (
    AdaptiveMarginTripletLoss,
    _next_margin,
    adaptive_margin,
)
from itmkit.losses.scores import Rows
from itmkit.losses.triplet import triplet_loss

STATISTICS = pytest.mark.parametrize("statistic", ["released", "mean"])


def naive_target(p: list[float], q: list[float], beta: float) -> float | None:
    """The root as the method writes it."""
    mp, sp, mn, sn = (f(x) for x in (p, q) for f in (statistics.mean, statistics.stdev))
    a = sp**2 - sn**2
    b = 2 * (mp * sn**2 - mn * sp**2)
    c = (mn * sp) ** 2 - (mp * sn) ** 2 + 2 * sp**2 * sn**2 * math.log(beta * sn / sp)
    if b * b - 4 * a * c <= 0:
        return None
    return (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)


def naive(
    scores: Tensor,
    margin: float,
    *,
    beta: float = 0.3,
    momentum: float = 0.9,
    min_rows: int = 46,
    positives: Tensor | None = None,
    negative_statistic: str = "released",
) -> float:
    p, q = [], []
    if positives is None:
        positives = torch.eye(len(scores), dtype=torch.bool)
    for i, j in positives.nonzero().tolist():
        true = float(scores[i, j])
        others = scores[i, ~positives[i]].tolist()
        if not others or true < max(others):
            continue
        p.append(true)
        k = len(others)
        if negative_statistic == "released":
            q.append(sum(s - true for s in others) / (k + 1) / k + margin)
        else:
            q.append(sum(others) / k)
    if len(p) < min_rows:
        return margin
    target = naive_target(p, q, beta)
    if target is None or target < 0:
        return margin
    return (1 - momentum) * (0.2 if target > 1 else target) + momentum * margin


def batch(n: int, positive: float = 0.6, noise: float = 0.05) -> Tensor:
    """Scores around 0.2, those on the diagonal around ``positive``."""
    scores = 0.2 + noise * torch.randn(n, n, dtype=torch.float64)
    scores.diagonal().add_(positive - 0.2)
    return scores


def of_statistics(p: list[float], q: list[float]) -> Tensor:
    """Scores whose row i has the positive ``p[i]`` and negatives that are all ``q[i]``."""
    scores = torch.tensor(q, dtype=torch.float64)[:, None].repeat(1, len(q))
    scores.diagonal().copy_(torch.tensor(p, dtype=torch.float64))
    return scores


def target_of(scores: Tensor, margin: float = 0.5, **options: float) -> float:
    """The target itself: a step without momentum."""
    options = {"min_rows": 2, "momentum": 0} | options
    start = torch.tensor(margin, dtype=torch.float64)
    return adaptive_margin(scores, start, negative_statistic="mean", **options).item()


def test_smoke():
    loss = AdaptiveMarginTripletLoss(min_rows=4)
    assert loss(batch(8)).shape == ()
    assert loss.margin.shape == ()
    assert loss.margin.dtype == torch.float64
    assert loss.margin != 0.2
    assert not loss.margin.requires_grad
    assert "margin=0.2" in repr(AdaptiveMarginTripletLoss())


@STATISTICS
@pytest.mark.parametrize("n", [2, 5, 12, 50])
@pytest.mark.parametrize("positive", [0.3, 0.6])
@pytest.mark.parametrize("further", [False, True])
def test_naive_loop_reference(n, positive, further, statistic):
    loss = AdaptiveMarginTripletLoss(
        0.25, beta=0.4, momentum=0.6, min_rows=2, negative_statistic=statistic
    )
    expected = 0.25
    positives = torch.rand(n, n) > 0.7 if further else None
    mask = torch.eye(n, dtype=torch.bool) if positives is None else positives
    for _ in range(4):
        scores = batch(n, positive, noise=0.08)
        if further:
            scores = scores.where(~positives, scores + 0.5)
        options = {"beta": 0.4, "momentum": 0.6, "min_rows": 2, "negative_statistic": statistic}
        expected = naive(scores, expected, positives=positives, **options)
        value = loss(scores, positives)
        assert loss.margin.item() == pytest.approx(expected, abs=1e-9)
        torch.testing.assert_close(value, triplet_loss(scores, mask, margin=expected))
    if n > 2:
        assert expected != 0.25


def test_golden_adaptive_margin(golden):
    arrays = golden("adaptive_margin")
    loss = AdaptiveMarginTripletLoss(
        margin=float(arrays["margin_init"]),
        beta=float(arrays["alpha"]),
        momentum=float(arrays["momentum"]),
        min_rows=int(arrays["min_positives"]),
        reduction="sum",
    )
    steps = zip(arrays["scores"], arrays["margin_after"], arrays["loss"], strict=True)
    for scores, margin, expected in steps:
        value = loss(torch.from_numpy(scores)).item()
        assert loss.margin.item() == pytest.approx(float(margin), abs=1e-6)
        assert value == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("p_noise", "q_noise"), [(0.05, 0.02), (0.02, 0.05), (0.04, 0.039)])
def test_target_is_where_the_densities_cross(p_noise, q_noise):
    p = (0.8 + p_noise * torch.randn(40, dtype=torch.float64)).tolist()
    q = (0.2 + q_noise * torch.randn(40, dtype=torch.float64)).tolist()
    target = target_of(of_statistics(p, q))
    positive = statistics.NormalDist(statistics.mean(p), statistics.stdev(p)).pdf(target)
    negative = statistics.NormalDist(statistics.mean(q), statistics.stdev(q)).pdf(target)
    assert 0.3 * positive == pytest.approx(negative, rel=1e-5, abs=0)
    assert statistics.mean(q) < target < statistics.mean(p)


@pytest.mark.parametrize("change", [0, 1e-13, -1e-13, 1e-9, -1e-9, 1e-7, -1e-7])
def test_guard_equal_deviations_is_the_linear_solution(change):
    p = [0.7, 0.8, 0.9]
    q = [0.2 + (1 + change) * d for d in (-0.1, 0.0, 0.1)]
    gap, variance = 0.6, 0.01
    expected = 0.2 + gap / 2 - variance * math.log(0.3) / gap
    assert target_of(of_statistics(p, q)) == pytest.approx(expected, abs=1e-6)


def test_guard_equal_deviations_and_means_keep():
    p, q = [0.4, 0.5, 0.6], [0.4, 0.5, 0.6]
    assert target_of(of_statistics(p, q)) == 0.5


def test_guard_no_real_root_keeps():
    p, q = [0.4, 0.5, 0.6], [0.395, 0.495, 0.59]
    assert naive_target(p, q, beta=3.0) is None
    assert target_of(of_statistics(p, q), beta=3.0) == 0.5


def test_guard_negative_target_keeps():
    p, q = [-0.6, -0.5, -0.4], [-0.9, -0.89, -0.88]
    assert naive_target(p, q, beta=0.3) < 0
    assert target_of(of_statistics(p, q)) == 0.5


def test_guard_target_above_one_becomes_a_fifth():
    p, q = [8.0, 9.0, 10.0], [3.0, 3.1, 3.2]
    assert naive_target(p, q, beta=0.3) > 1
    assert target_of(of_statistics(p, q)) == pytest.approx(0.2)
    assert target_of(of_statistics(p, q), momentum=0.9) == pytest.approx(0.47)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.9, 0.9, 0.9], [0.1, 0.2, 0.3]),
        ([0.7, 0.8, 0.9], [0.1, 0.1, 0.1]),
        ([0.9, 0.9, 0.9], [0.1, 0.1, 0.1]),
    ],
)
@STATISTICS
def test_guard_deviation_of_zero_keeps(p, q, statistic):
    if statistic == "released":  # of the distance to the positive
        q = [x + y - 1 for x, y in zip(q, p, strict=True)]
    scores = of_statistics(p, q)
    start = torch.tensor(0.5)
    kept = adaptive_margin(scores, start, min_rows=2, negative_statistic=statistic)
    assert kept.item() == 0.5


def test_guard_too_few_rows_keep():
    scores = batch(46)
    assert AdaptiveMarginTripletLoss()(scores).isfinite()
    loss = AdaptiveMarginTripletLoss()
    loss(scores)
    assert loss.margin != 0.2
    scores[7, 3] = 2  # row 7 no longer counts: 45 rows
    loss = AdaptiveMarginTripletLoss()
    loss(scores)
    assert loss.margin == 0.2


def test_guard_one_row_keeps():
    scores = batch(6)
    scores[1:, 0] = 2  # of six rows, the first alone counts
    assert target_of(scores) == 0.5


def test_guard_min_rows_below_two_is_an_error():
    for few in (1, 0, -3):
        with pytest.raises(ValueError, match=f"min_rows.*{few}"):
            AdaptiveMarginTripletLoss(min_rows=few)


@pytest.mark.parametrize("n", [0, 1])
def test_guard_empty_selection_is_zero_with_a_graph(n):
    scores = torch.randn(n, n, requires_grad=True)
    loss = AdaptiveMarginTripletLoss(min_rows=2)
    value = loss(scores)
    value.backward()
    assert value == 0
    assert torch.equal(scores.grad, torch.zeros(n, n))
    assert loss.margin == 0.2


def test_guard_ties_count():
    scores = batch(6)
    scores[2, 4] = scores[2, 2]
    expected = naive(scores, 0.2, min_rows=6)
    loss = AdaptiveMarginTripletLoss(min_rows=6)
    loss(scores)
    assert loss.margin.item() == pytest.approx(expected)
    assert loss.margin != 0.2


@STATISTICS
def test_guard_constant_scores_keep(statistic):
    loss = AdaptiveMarginTripletLoss(min_rows=2, negative_statistic=statistic)
    assert loss(torch.full((9, 9), 0.3)).isfinite()
    assert loss.margin == 0.2


def test_guard_pairs_without_negatives_do_not_count():
    scores, positives = batch(6), torch.eye(6, dtype=torch.bool)
    positives[0] = True
    start = torch.tensor(0.2, dtype=torch.float64)
    moved = adaptive_margin(scores, start, min_rows=5, positives=positives)
    assert moved.item() == pytest.approx(naive(scores, 0.2, min_rows=5, positives=positives))
    assert moved != start
    assert adaptive_margin(scores, start, min_rows=6, positives=positives) == start
    nothing = adaptive_margin(scores, start, min_rows=2, positives=torch.ones(6, 6).bool())
    assert nothing == start


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_guard_scores_that_are_not_finite_keep(value):
    scores = batch(6)
    scores[3, 1] = value
    assert target_of(scores) == 0.5


def test_guard_no_overflow_in_float64():
    p = [1.2e308, 1.4e308, 1.7e308]
    assert target_of(of_statistics(p, [0.0, 1e307, 2e307])) == pytest.approx(0.2)
    assert target_of(of_statistics(p, [-1.7e308, -1.69e308, -1.6e308])) == 0.5


def test_a_part_at_a_time_is_the_same():
    scores, positives = batch(12), torch.eye(12, dtype=torch.bool) | (torch.rand(12, 12) > 0.8)
    options = {"beta": 0.3, "momentum": 0.1, "min_rows": 2, "negative_statistic": "mean"}
    for mask in (None, positives):
        whole = _next_margin([Rows(scores, mask)], 0.2, **options)
        parts = [
            Rows(scores[a:b], None if mask is None else mask[a:b], a)
            for a, b in ((0, 5), (5, 6), (6, 12))
        ]
        torch.testing.assert_close(_next_margin(parts, 0.2, **options), whole)
        assert whole != 0.2


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=60)
@given(
    values=st.integers(1, 5).flatmap(
        lambda n: st.one_of(
            st.lists(s, min_size=n * n, max_size=n * n)
            for s in (finite, st.floats(-1, 1, width=32), st.floats(-1e4, 1e4, width=16))
        )
    ),
    statistic=st.sampled_from(["released", "mean"]),
)
@example([1e38, -1e38, 1e38, -1e38], "released")
@example([1e-45, 0, 0, 2e-45], "mean")
def test_property_finite_for_finite_scores(values, statistic):
    n = math.isqrt(len(values))
    scores = torch.tensor(values, dtype=torch.float32).view(n, n).requires_grad_()
    loss = AdaptiveMarginTripletLoss(min_rows=2, momentum=0.1, negative_statistic=statistic)
    for _ in range(2):
        value = loss(scores)
        value.backward()
        assert 0 <= loss.margin <= 1
        assert not value.isnan()
        assert value.isfinite() or scores.detach().abs().max() > 1e36  # the sum of the hinges
        assert scores.grad.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 9), seed=st.integers(0, 999))
def test_property_permutation(n, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, n, generator=generator, dtype=torch.float64)
    scores.diagonal().add_(0.6)
    order = torch.randperm(n, generator=generator)
    first, second = (AdaptiveMarginTripletLoss(min_rows=2) for _ in range(2))
    torch.testing.assert_close(first(scores), second(scores[order][:, order]))
    torch.testing.assert_close(first.margin, second.margin)


def test_eval_leaves_the_margin():
    loss = AdaptiveMarginTripletLoss(margin=0.3, min_rows=2).eval()
    scores = batch(8, positive=0.3)
    torch.testing.assert_close(loss(scores), triplet_loss(scores, margin=0.3))
    assert loss.margin == 0.3


def test_training_uses_the_new_margin_at_once():
    loss, scores = AdaptiveMarginTripletLoss(min_rows=2, momentum=0), batch(8, positive=0.3)
    value = loss(scores)
    assert loss.margin != 0.2
    torch.testing.assert_close(value, triplet_loss(scores, margin=loss.margin))
    assert torch.equal(loss.eval()(scores), value)


def test_backward_after_the_next_step():
    loss, scores = AdaptiveMarginTripletLoss(min_rows=2), batch(8, 0.3).requires_grad_()
    value = loss(scores)
    margin = loss.margin.clone()
    loss(scores)
    assert loss.margin != margin
    value.backward()
    moved = scores.detach().clone().requires_grad_()
    triplet_loss(moved, margin=margin).backward()
    assert torch.equal(scores.grad, moved.grad)


def test_state_dict_round_trip():
    loss = AdaptiveMarginTripletLoss(min_rows=2)
    loss(batch(8))
    assert list(loss.state_dict()) == ["margin"]
    other = AdaptiveMarginTripletLoss(min_rows=2)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(other.margin, loss.margin)
    scores = batch(8)
    assert torch.equal(other(scores), loss(scores))
    assert torch.equal(other.margin, loss.margin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_margin_stays_float64_in_a_cast_module(dtype):
    loss = AdaptiveMarginTripletLoss(margin=0.123456789)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), loss).to(dtype)
    assert model[0].weight.dtype == dtype
    assert loss.margin.dtype == torch.float64
    assert loss.margin.item() == 0.123456789
    assert loss.to("meta", dtype).margin.is_meta
    assert loss.to_empty(device="cpu").margin.dtype == torch.float64


@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_gradcheck(negatives):
    scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    positives = torch.rand(5, 5) > 0.7
    loss = AdaptiveMarginTripletLoss(0.37, negatives=negatives).eval()
    assert torch.autograd.gradcheck(loss, (scores,))
    assert torch.autograd.gradcheck(loss, (scores, positives))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    scores = batch(8).to(dtype)
    half, full = (AdaptiveMarginTripletLoss(min_rows=2) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = half.to(dtype)(scores)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, full(scores.float()))
    assert torch.equal(half.margin, full.margin)
    assert full.margin != 0.2


@STATISTICS
def test_compile(statistic):
    loss = AdaptiveMarginTripletLoss(min_rows=2, negative_statistic=statistic)
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="eager")
    positives = torch.rand(6, 6) > 0.7
    for mask in (None, positives, None):
        scores = batch(6)
        torch.testing.assert_close(compiled(scores, mask), loss(scores, mask))
        assert torch.equal(compiled.margin, loss.margin)
    assert loss.margin != 0.2


def test_no_value_is_read_on_the_host():
    loss = AdaptiveMarginTripletLoss(min_rows=2).to("meta")  # where there is no value to read
    assert loss(torch.empty(6, 6, device="meta")).is_meta
    assert loss(*(torch.empty(6, 6, dtype=t, device="meta") for t in (None, torch.bool))).is_meta


def test_negatives_can_be_set():
    loss = AdaptiveMarginTripletLoss(negatives="all")
    scores = torch.randn(5, 5)
    expected = triplet_loss(scores, margin=0.2, negatives="all")
    torch.testing.assert_close(loss(scores), expected)
    loss.negatives = "hardest"
    torch.testing.assert_close(loss(scores), triplet_loss(scores, margin=0.2))
    with pytest.raises(ValueError, match=r"negatives.*'semi'"):
        loss.negatives = "semi"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("margin", -0.1),
        ("margin", math.nan),
        ("beta", 0),
        ("momentum", 1.5),
        ("momentum", -0.5),
        ("negatives", "none"),
        ("negative_statistic", "median"),
    ],
)
def test_error_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        AdaptiveMarginTripletLoss(**{name: value})
    if name != "negatives":
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            adaptive_margin(torch.eye(3), **{"margin": 0.2, name: value})


@pytest.mark.parametrize("training", [True, False])
def test_error_shapes(training):
    loss = AdaptiveMarginTripletLoss().train(training)
    for shape in ((), (3,), (3, 4)):
        with pytest.raises(ValueError, match="scores"):
            loss(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"positives.*\(1, 3\)"):
        loss(torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"positives.*expected a bool"):
        loss(torch.zeros(3, 3), torch.zeros(3, 3))
