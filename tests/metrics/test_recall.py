"""CrossModalRecall: the same numbers as the function, each sample once, in any number of parts."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from processes import run_ranks
from torch.nn import functional as F

from itmkit.metrics import CrossModalRecall, recall
from itmkit.metrics.functional import cross_modal_recall


def split(n=11, dim=8, captions=(3, 1, 2)):
    """Embeddings of a split whose images have different numbers of captions."""
    g = torch.Generator().manual_seed(5)
    image = torch.randn(n, dim, generator=g)
    counts = torch.tensor([captions[i % len(captions)] for i in range(n)])
    owners = torch.arange(n).repeat_interleave(counts)
    text = image[owners] + 1.5 * torch.randn(len(owners), dim, generator=g)
    return image, text, torch.arange(n), owners


def batch(data, rows, *, with_text_ids=False):
    """The batch of some images, each followed by all of its captions."""
    image, text, _, owners = data
    columns = torch.cat([(owners == row).nonzero()[:, 0] for row in rows])
    rows = torch.tensor(rows)
    return (image[rows], text[columns], rows + 50, owners[columns] + 50) + (
        (columns,) if with_text_ids else ()
    )


def expected(data):
    image, text, ids, owners = data
    return cross_modal_recall(F.normalize(image) @ F.normalize(text).T, ids, owners)


def computed(metric):
    return {key: value.item() for key, value in metric.compute().items()}


def test_smoke():
    data = split()
    metric = CrossModalRecall()
    metric.update(*data)
    result = metric.compute()
    assert all(value.shape == () and value.dtype == torch.float32 for value in result.values())
    assert list(result) == list(expected(data))
    assert computed(metric) == pytest.approx(expected(data))
    assert result["rsum"] < 600


@pytest.mark.parametrize("with_text_ids", [False, True])
@pytest.mark.parametrize("size", [1, 4, 11])
def test_batches_change_nothing(size, with_text_ids):
    data = split()
    metric = CrossModalRecall()
    for start in range(0, 11, size):
        rows = list(range(11))[start : start + size]
        metric.update(*batch(data, rows, with_text_ids=with_text_ids))
    assert computed(metric) == pytest.approx(expected(data))


def test_chunks_change_nothing(monkeypatch):
    data = split()
    monkeypatch.setattr(recall, "_TILE", 4)
    metric = CrossModalRecall()
    metric.update(*data)
    assert computed(metric) == pytest.approx(expected(data))


def test_scale_changes_nothing():
    image, text, ids, owners = split()
    metric = CrossModalRecall()
    metric.update(image * torch.rand(len(image), 1) * 9, text * 100, ids, owners)
    assert computed(metric) == pytest.approx(expected(split()))


def test_equal_embeddings_tie():
    """All captions alike, many sizes: no rounding of the product may hide that they tie."""
    for n in (2, 17, 50):
        ids, owners = torch.arange(n), torch.arange(n).repeat_interleave(5)
        metric = CrossModalRecall()
        image, text = torch.randn(1, 96), torch.randn(1, 96)
        metric.update(image.repeat(n, 1), text.repeat(5 * n, 1), ids, owners)
        result = computed(metric)
        assert result["i2t_r1"] == result["t2i_r1"] == 0
        assert result["i2t_meanr"] == 5 * n - 4
        assert result["t2i_meanr"] == n


def test_identical_captions_of_one_image_are_kept():
    image = torch.eye(4)[:3]
    text = torch.eye(4)[[0, 0, 1, 3, 2]]
    metric = CrossModalRecall()
    metric.update(image, text, torch.arange(3), torch.tensor([0, 0, 1, 1, 2]))
    assert computed(metric)["t2i_r1"] == pytest.approx(80)


@pytest.mark.parametrize("with_text_ids", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]],
        [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 1, 2]],
        [[3, 3, 3, 0, 1, 2], [4, 5, 6, 7, 8, 9, 10], [10], [4]],
    ],
)
def test_each_sample_counts_once(parts, with_text_ids):
    data = split()
    metric = CrossModalRecall()
    for rows in parts:
        metric.update(*batch(data, rows, with_text_ids=with_text_ids))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert computed(metric) == pytest.approx(expected(data))


def test_repeated_captions_without_ids_are_told():
    data = split()
    metric = CrossModalRecall()
    metric.update(*data)
    metric.update(*(part[:1] for part in data))
    with pytest.raises(ValueError, match=r"image id 0 came again with 1 captions after 3"):
        metric.compute()
    metric.reset()
    metric.update(*batch(data, list(range(11))))
    metric.update(*batch(data, [0]))
    with pytest.warns(UserWarning, match="3 captions came again"):
        metric.compute()


@pytest.mark.parametrize("size", [7, 100])
def test_an_image_stored_once_a_caption(size):
    """Pairs, the image repeated for each caption: text ids tell them apart in any cut."""
    image, text, _, owners = data = split()
    metric = CrossModalRecall()
    for start in range(0, len(text), size):
        columns = torch.arange(len(text))[start : start + size]
        own = owners[columns]
        metric.update(image[own], text[columns], own, own, columns)
    assert computed(metric) == pytest.approx(expected(data))
    metric = CrossModalRecall()
    metric.update(image[owners], text, owners, owners)
    assert computed(metric) == pytest.approx(expected(data))


def test_captions_may_come_without_their_image():
    image, text, ids, owners = data = split()
    metric = CrossModalRecall()
    metric.update(image, text[:0], ids, owners[:0])
    metric.update(image[:0], text[:4], ids[:0], owners[:4])
    metric.update(image[:0], text[4:], ids[:0], owners[4:])
    assert computed(metric) == pytest.approx(expected(data))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    image, text, ids, owners = split()
    image, text = image.to(dtype), text.to(dtype)
    metric = CrossModalRecall()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(image, text, ids, owners)
        result = computed(metric)
    assert result == pytest.approx(expected((image.double(), text.double(), ids, owners)))


def test_reset_and_forward():
    data = split()
    metric = CrossModalRecall()
    metric.update(torch.randn(4, 8), torch.randn(4, 8), torch.arange(4), torch.arange(4))
    metric.reset()
    first = metric(*batch(data, [0, 1, 2, 3]))
    metric.update(*batch(data, [4, 5, 6, 7, 8, 9, 10]))
    image, text, ids, owners = data
    own = owners < 4
    part = expected((image[:4], text[own], ids[:4], owners[own]))
    assert {key: value.item() for key, value in first.items()} == pytest.approx(part)
    assert computed(metric) == pytest.approx(expected(data))


def test_state_dict_round_trip():
    data = split()
    metric = CrossModalRecall()
    metric.persistent(True)
    metric.update(*batch(data, [0, 1, 2, 3]))
    restored = CrossModalRecall()
    restored.persistent(True)
    restored.load_state_dict(copy.deepcopy(metric.state_dict()))
    restored.update(*batch(data, [4, 5, 6, 7, 8, 9, 10]))
    assert computed(restored) == pytest.approx(expected(data))


def test_inputs_are_not_kept():
    """Writing over a batch after the update changes nothing, and no graph is held."""
    data = split()
    own = [part.clone() for part in data]
    own[0].requires_grad_()
    metric = CrossModalRecall()
    metric.update(*own)
    assert not metric.image[0].requires_grad
    for part in own:
        part.detach().zero_()
    assert computed(metric) == pytest.approx(expected(data))


def test_unrelated_vectors_reach_chance():
    n = 300
    metric = CrossModalRecall()
    metric.update(torch.randn(n, 32), torch.randn(n, 32), torch.arange(n), torch.arange(n))
    result = computed(metric)
    assert result["i2t_r10"] < 8  # chance is 3.3
    assert result["t2i_r10"] < 8


def test_error_update():
    image, text, ids, owners = split()
    metric = CrossModalRecall()
    with pytest.raises(ValueError, match=r"image has the shape \(8,\); expected \(rows, D\)"):
        metric.update(image[0], text, ids, owners)
    with pytest.raises(
        ValueError, match=r"text is a torch\.int64 tensor; expected a floating-point"
    ):
        metric.update(image, text.long(), ids, owners)
    with pytest.raises(ValueError, match="the widths 8 and 7; expected one"):
        metric.update(image, text[:, :7], ids, owners)
    with pytest.raises(ValueError, match=r"image_ids has the shape \(3,\); expected \(11,\)"):
        metric.update(image, text, ids[:3], owners)
    with pytest.raises(
        ValueError, match=r"text_image_ids is a torch\.float32 tensor; expected integers"
    ):
        metric.update(image, text, ids, owners.float())
    with pytest.raises(ValueError, match=r"text_ids has the shape \(2,\)"):
        metric.update(image, text, ids, owners, owners[:2])
    with pytest.raises(ValueError, match="text_ids holds -1; expected 0 or more"):
        metric.update(image, text, ids, owners, owners - 1)
    with pytest.raises(ValueError, match="image id 0 came 2 times with 3 captions"):
        metric.update(image[[0, 0]], text[:3], ids[[0, 0]], owners[:3])


def test_images_without_captions_are_searched_but_no_queries():
    image, text, ids, owners = split()
    kept = owners != 4
    metric = CrossModalRecall()
    metric.update(image, text[kept], ids, owners[kept])
    scores = F.normalize(image, dim=1) @ F.normalize(text[kept], dim=1).T
    expected = cross_modal_recall(scores, ids, owners[kept])
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_error_compute():
    image, text, ids, owners = split()
    metric = CrossModalRecall()
    with pytest.raises(ValueError, match="got none"):
        metric.compute()
    metric.update(image, text[:0], ids, owners[:0])
    with pytest.raises(ValueError, match="got 11 and 0"):
        metric.compute()
    for broken, message in (
        ((image[:10], text, ids[:10], owners), "image id 10, which did not come"),
        ((image.index_fill(0, torch.tensor(3), torch.nan), text, ids, owners), "of image id 3"),
        ((image, text * torch.inf, ids, owners), "text embeddings must be finite"),
        ((image, text, ids, owners, owners), None),
    ):
        metric.reset()
        metric.update(*broken)
        if message:
            with pytest.raises(ValueError, match=message):
                metric.compute()
    metric.reset()
    metric.update(image, text, ids, owners)
    metric.update(image[:, :4], text[:, :4], ids, owners)
    with pytest.raises(ValueError, match="differ in width"):
        metric.compute()
    metric.reset()
    metric.update(image, text, ids, owners, torch.arange(len(text)))
    metric.update(image, text, ids, owners.flip(0), torch.arange(len(text)))
    with pytest.raises(ValueError, match="text id 0 belongs to more than one image"):
        metric.compute()


WORKER = """
import json, sys, warnings
import torch
from itmkit.metrics import CrossModalRecall
from processes import join, leave

folder = sys.argv[1]
rank = join(folder)
warnings.simplefilter("ignore")
results = {}
for name, calls in torch.load(f"{folder}/data.pt", weights_only=True).items():
    metric = CrossModalRecall()
    for call in calls[rank]:
        metric.update(*call)
    results[name] = {key: value.item() for key, value in metric.compute().items()}
    assert len(metric.sizes) == len(calls[rank])  # own states are back after compute
with open(f"{folder}/out.{rank}", "w") as file:
    json.dump(results, file)
leave()
"""


def test_ddp(tmp_path):
    """Two processes, padded and unequal shares, and one without any data."""
    data = split()
    with_ids = {"with_text_ids": True}
    padded = [*range(11), 0]
    cases = {
        "padded": [[batch(data, padded[rank::2])] for rank in (0, 1)],
        "padded_ids": [[batch(data, padded[rank::2], **with_ids)] for rank in (0, 1)],
        "half": [[[x.half() if x.is_floating_point() else x for x in batch(data, padded[r::2])]]
                 for r in (0, 1)],
        "unequal": [[batch(data, [0, 1, 2]), batch(data, [3, 4, 5, 6, 7])],
                    [batch(data, [8, 9, 10, 2, 1])]],
        "one_idle": [[], [batch(data, list(range(11)))]],
    }  # fmt: skip
    torch.save(cases, tmp_path / "data.pt")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run_ranks(script, tmp_path)
    exact = expected(data)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"out.{rank}").read_text())
        assert list(results) == list(cases)
        for name in ("padded", "padded_ids", "unequal", "one_idle"):
            assert results[name] == pytest.approx(exact), name
        image, text, ids, owners = data
        half = expected((image.half().double(), text.half().double(), ids, owners))
        assert results["half"] == pytest.approx(half)
