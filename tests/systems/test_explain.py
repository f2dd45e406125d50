"""Shares add up to the score, attention to one; both for every system, encoder and padding."""

from __future__ import annotations

import pytest
import torch
from systems import ALL, SYSTEMS, VARIANTS, dataset_of, with_encoders
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.nn import CrossAttentionSimilarity, ExternalSpatialAttention, FusionEncoder
from itmkit.nn.attention.cross_attention import cross_attention_scores
from itmkit.nn.attention.cross_attention_shares import cross_attention_shares
from itmkit.nn.pooling.external_attention import pooled_shares
from itmkit.retrieval import Gallery, encode, evaluating
from itmkit.systems import DAIM, Matcher
from itmkit.systems.local_matcher import LocalMatcher

CASES = [case for case in with_encoders(SYSTEMS) if case[0] != "dual_encoder"]
CASES += [
    (name, None, None) for name in VARIANTS if name not in ("daim_warming_up", "dual_corrected")
]


def encoded(system: str, image: str | None, text: str | None) -> tuple[Matcher, Gallery]:
    torch.manual_seed(0)
    case = ALL[system]
    matcher = case.make(image, text).eval()
    data = ImageTextData(dataset_of(case.reading(image), 3), train_split="val", eval_batch_size=3)
    return matcher, encode(matcher, data.val_dataloader())


@pytest.mark.parametrize(("system", "image", "text"), CASES)
def test_explanations_fit_the_scores(system: str, image: str | None, text: str | None) -> None:
    matcher, gallery = encoded(system, image, text)
    with evaluating(matcher):
        # what is explained of those with a global branch as their first stage is the second
        explained = matcher.local_scores if isinstance(matcher, LocalMatcher) else matcher.score
        scores = explained(gallery.images, gallery.texts)
        for row, column in [(0, 0), (1, 7), (2, 14)]:  # captions of several lengths, padded
            one, other = gallery.images[row], gallery.texts[column]
            found = matcher.explain(one, other)
            if "uncorrected" in found[0].title:
                assert matcher.hubness_correction is not None
            elif system != "mate_mean_path":  # the mean has no tokens
                assert found[0].score == pytest.approx(float(scores[row, column]), abs=1e-5)
            for explanation in found:
                total = sum(float(own.values.sum()) for own in explanation.maps)
                if explanation.kind == "shares":
                    assert total == pytest.approx(explanation.score, abs=1e-5)
                else:
                    assert all((own.values >= 0).all() for own in explanation.maps)
                for values, grid in explanation.maps:
                    assert grid is None or grid[0] * grid[1] == values.shape[1]
    kinds = {"mate": ["shares", "attention"], "daim": ["shares"], "tvrn": ["attention"]}
    expected = kinds[system.partition("_")[0]]
    assert [one.kind for one in found] == expected[: len(found)]
    assert len(found) == len(expected) or system in ("mate_no_fusion", "mate_mean_path")


def test_attention_of_tvrn_is_shared_out_among_the_real_regions() -> None:
    matcher, gallery = encoded("tvrn_sgr", None, None)
    with evaluating(matcher):
        for row in range(3):
            text = gallery.texts[5 * row]
            (values, _) = matcher.explain(gallery.images[row], text)[0].maps[0]
            mask = gallery.images[row].context_mask
            real = values if mask is None else values[:, mask[0]]
            sums = torch.ones(len(values)) if text.mask is None else text.mask[0].float()
            assert torch.allclose(real.sum(1), sums, atol=1e-5)


def test_grids_are_known() -> None:
    matcher, gallery = encoded("daim", "grid", "gru")
    (explanation,) = matcher.explain(gallery.images[0], gallery.texts[0])
    assert explanation.maps[0].grid == matcher.get_submodule("image_encoder").grid
    matcher, gallery = encoded("daim_levels", "stages", "gru_levels")
    (explanation,) = matcher.explain(gallery.images[0], gallery.texts[0])
    assert [one.grid for one in explanation.maps] == [(2, 2), (2, 2)]


def test_a_model_of_two_vectors_says_that_it_cannot() -> None:
    matcher, gallery = encoded("dual_encoder", None, None)
    with pytest.raises(InputError, match=r"DualEncoder, which cannot explain .* DAIM, MATE or"):
        matcher.explain(gallery.images[0], gallery.texts[0])


def test_one_pair_is_explained() -> None:
    matcher, gallery = encoded("daim", None, None)
    with pytest.raises(InputError, match="text has 15 rows; expected 1"):
        matcher.explain(gallery.images[0], gallery.texts)


def naive_shares(image: Tensor, text: Tensor, smooth: float) -> Tensor:
    """Of words that look for regions, one number at a time."""
    dots = torch.tensor([[float(word @ region) for region in image] for word in text]).double()
    shares = torch.zeros(len(text), len(image))
    positive = torch.where(dots > 0, dots, 0.1 * dots)
    for word in range(len(text)):
        logits = [
            smooth * positive[word, k] / positive[:, k].square().sum().sqrt()
            for k in range(len(image))
        ]
        weights = torch.stack(logits).softmax(0)
        context = sum(weights[k] * image[k].double() for k in range(len(image)))
        for k in range(len(image)):
            norm = len(text) * float(text[word].double().norm() * torch.as_tensor(context).norm())
            shares[word, k] = float(weights[k] * dots[word, k]) / norm
    return shares


@pytest.mark.parametrize("direction", ["t2i", "i2t", "both"])
def test_cross_attention_shares_equal_a_loop(direction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    image, text = torch.randn(5, 6, generator=generator), torch.randn(4, 6, generator=generator)
    t2i, i2t = naive_shares(image, text, 4.0), naive_shares(text, image, 4.0).T
    expected = {"t2i": t2i, "i2t": i2t, "both": (t2i + i2t) / 2}[direction]
    similarity = CrossAttentionSimilarity(direction, 4.0)  # type: ignore[arg-type]
    shares = similarity.shares(image[None], text[None])[0]
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)
    # padding, whatever it holds, has none
    more_image = torch.cat([image, torch.full((2, 6), 9.0)])[None]
    more_text = torch.cat([text, torch.full((3, 6), -9.0)])[None]
    masks = torch.arange(7)[None] < 5, torch.arange(7)[None] < 4
    padded = cross_attention_shares(
        more_image,
        more_text,
        *masks,
        direction=similarity.direction,
        smooth=4.0,
    )
    torch.testing.assert_close(padded[0, :4, :5], shares, atol=1e-5, rtol=1e-4)
    assert padded[0, 4:].abs().sum() + padded[0, :, 5:].abs().sum() == 0
    scores = cross_attention_scores(
        image[None], text[None], direction=similarity.direction, smooth=4.0
    )
    assert float(shares.sum()) == pytest.approx(float(scores), abs=1e-5)


def test_shares_of_nothing_are_zero() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    ones = torch.ones(1, 2, 4)
    assert torch.equal(cross_attention_shares(ones, ones, nothing), torch.zeros(1, 2, 2))
    pool = ExternalSpatialAttention(4).eval()
    assert torch.equal(pooled_shares(pool, ones, None, pool, ones, nothing), torch.zeros(1, 2, 2))


def test_attention_of_the_fusion_is_that_of_its_layers() -> None:
    torch.manual_seed(0)
    fusion = FusionEncoder(8, num_layers=1, num_heads=1).eval()
    image, text = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    vectors = torch.randn(2, 1, 8)
    found = fusion.attention(vectors[0], image, None, vectors[1], text, None)
    kinds = fusion.type_embedding
    parts = [vectors[0, :, None], vectors[1, :, None], image, text]
    x = torch.cat([fusion.norm_in(p) + kinds[i] for i, p in enumerate(parts)], 1)
    layer = fusion.layers[0]
    y = layer.norm_attention(x)
    query, key = layer.query(y)[0], layer.key_value(y)[0, :, :8]
    weights = (query @ key.T / 8**0.5).softmax(1)
    torch.testing.assert_close(found[0], weights[5:, 2:5])
    mask = torch.tensor([[True, False]])
    masked = fusion.attention(vectors[0], image, None, vectors[1], text, mask)
    assert masked[0, 1].sum() == 0


def test_explain_takes_a_system_of_ones_own() -> None:
    """A subclass keeps the explanation of its system."""

    class Own(DAIM):
        pass

    matcher, gallery = encoded("daim", None, None)
    own = Own(matcher.get_submodule("image_encoder"), matcher.get_submodule("text_encoder"))
    assert own.explain(gallery.images[0], gallery.texts[0])[0].kind == "shares"
