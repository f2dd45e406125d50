"""Vectors of mean features beside those of tokens."""

import pytest
import torch

from itmkit.checks import InputError
from itmkit.nn import (
    BiGRU,
    GlobalBranch,
    MeanPath,
    RegionProjection,
    StoredTokens,
    Tokens,
    l2_normalize,
)


def completed(*encoders, **options):
    torch.manual_seed(0)
    path = MeanPath(6, hidden_dim=5, **options)
    path.complete(*encoders)
    return path.eval()


def test_cosine_is_that_of_means_and_that_of_tokens_by_share():
    path = completed(RegionProjection(7, 4, hidden_dim=3), StoredTokens(5, 4), share=0.3)
    means = l2_normalize(torch.randn(3, 6)), l2_normalize(torch.randn(4, 6))
    attended = l2_normalize(torch.randn(3, 4)), l2_normalize(torch.randn(4, 4))
    images, texts = path.join(means[0], attended[0]), path.join(means[1], attended[1])
    expected = 0.3 * means[0] @ means[1].T + 0.7 * attended[0] @ attended[1].T
    torch.testing.assert_close(images @ texts.T, expected)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(path.attended(images), attended[0])


def test_reads_stored_features_with_their_mask_and_not_what_a_token_drop_left():
    encoders = RegionProjection(7, 4, hidden_dim=3), StoredTokens(5, 4)
    path = completed(*encoders)
    features, mask = torch.randn(2, 6, 5), torch.arange(6) < torch.tensor([[6], [2]])
    noise = features.masked_fill(~mask[..., None], 99.0)
    fewer = encoders[1](features, mask & (torch.arange(6) < 1))
    found = path.text(noise, mask, fewer)
    head = path.text_head
    expected = torch.stack([features[0].mean(0), features[1, :2].mean(0)])
    torch.testing.assert_close(found, l2_normalize(head(expected[:, None])[0][:, 0]))


def test_reads_tokens_of_encoders_of_words():
    words = BiGRU(20, 3, 4)
    path = completed(RegionProjection(7, 4, hidden_dim=3), words)
    ids, mask = torch.randint(1, 20, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    tokens = words(ids, mask)
    found = path.text(ids, mask, tokens)
    torch.testing.assert_close(
        found, l2_normalize(path.text_head(tokens[0].mean(1, keepdim=True))[0][:, 0])
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_out_of_range(share):
    with pytest.raises(InputError, match=f"share is {share}"):
        MeanPath(4, share=share)


def test_branch_without_a_mean_path_starts_as_the_mean_of_the_tokens():
    encoders = RegionProjection(7, 4, hidden_dim=3).eval(), StoredTokens(5, 4).eval()
    branch = GlobalBranch()
    branch.complete(*encoders)
    features = torch.randn(3, 6, 7)
    tokens = encoders[0](features)
    torch.testing.assert_close(
        branch.eval().image(features, None, tokens), l2_normalize(tokens[0].mean(1))
    )


def test_branch_joins_both_paths():
    encoders = RegionProjection(7, 4, hidden_dim=3).eval(), StoredTokens(5, 4).eval()
    branch = GlobalBranch(MeanPath(6, hidden_dim=5))
    branch.complete(*encoders)
    branch.eval()
    words, mask = torch.randn(3, 6, 5), torch.arange(6) < torch.tensor([[6], [2], [4]])
    vectors = branch.text(words, mask, encoders[1](words, mask))
    assert vectors.shape == (3, 10)
    torch.testing.assert_close(
        branch.mean_path.attended(vectors),
        l2_normalize(branch.text_pool(*encoders[1](words, mask))),
    )


def test_reads_tokens_of_encoders_of_several_levels():
    """Whose input is as many stored features side by side."""
    words = StoredTokens(5, 4, levels=2)
    path = completed(RegionProjection(7, 4, hidden_dim=3), words)
    features = torch.randn(2, 3, 10)
    last = words(features)[-1]
    expected = path.text_head(last.tokens.mean(1, keepdim=True))[0][:, 0]
    torch.testing.assert_close(path.text(features, None, last), l2_normalize(expected))


def test_views_drop_tokens_of_images_alone():
    branch = GlobalBranch(views=2, token_drop=0.9)
    branch.complete(RegionProjection(7, 4, hidden_dim=3), StoredTokens(5, 4))
    tokens = Tokens(torch.randn(2, 30, 4))
    for read, rows in ((branch.image, 4), (branch.text, 2)):
        branch.eval()
        whole = read(tokens[0], None, tokens)
        branch.train()
        drawn = read(tokens[0], None, tokens)
        assert len(drawn) == rows
        assert drawn.equal(whole) == (rows == 2)
