"""CrossModalRecall: the same numbers as the function, each sample once, in any number of parts."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import torch
from processes import run_ranks
from torch.nn import functional as F
from torch.utils.data import DistributedSampler
from torchmetrics import MetricCollection

from itmkit.checks import InputError
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


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]],
        [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 1, 2]],
        [[3, 3, 3, 0, 1, 2], [4, 5, 6, 7, 8, 9, 10], [10], [4]],
    ],
)
def test_each_sample_counts_once(parts):
    """With text ids a repeated sample changes nothing; without, it is an error and no guess."""
    data = split()
    metric = CrossModalRecall()
    for rows in parts:
        metric.update(*batch(data, rows, with_text_ids=True))
    assert computed(metric) == pytest.approx(expected(data))

    def without_ids():
        metric = CrossModalRecall()
        for rows in parts:
            metric.update(*batch(data, rows))
        metric.compute()

    with pytest.raises(InputError, match=r"image id \d+ occurs \d times without text_ids"):
        without_ids()


def test_vectors_that_differ_by_rounding_are_one_sample():
    image, text, ids, owners = data = split()
    captions = torch.arange(len(text))
    metric = CrossModalRecall()
    metric.update(image, text, ids, owners, captions)
    metric.update(image.bfloat16(), text.bfloat16(), ids, owners, captions)
    assert computed(metric) == pytest.approx(expected(data))


def test_error_one_id_with_two_vectors():
    """Ids counted from 0 in each batch: everything would fold into the first batch."""
    image, text, ids, _ = split(captions=(1,))
    metric = CrossModalRecall()
    for _ in range(2):
        metric.update(image, text, ids, ids, ids)
        image = image.flip(0)
    with pytest.raises(InputError, match="image id 0 has two different vectors; expected ids"):
        metric.compute()
    metric = CrossModalRecall()
    with pytest.raises(InputError, match="image id 0 has two different vectors"):
        metric.update(image, text, ids * 0, ids)
    with pytest.raises(InputError, match="text id 0 has two different vectors"):
        metric.update(image, text, ids, ids, ids * 0)


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
    with pytest.raises(ValueError, match="image id 0 occurs 2 times without text_ids"):
        metric.update(image[[0, 0]], text[:3], ids[[0, 0]], owners[:3])


def test_images_without_captions_are_searched_but_no_queries():
    image, text, ids, owners = split()
    kept = owners != 4
    metric = CrossModalRecall()
    metric.update(image, text[kept], ids, owners[kept])
    scores = F.normalize(image, dim=1) @ F.normalize(text[kept], dim=1).T
    expected = cross_modal_recall(scores, ids, owners[kept])
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx(expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_error_not_finite(value):
    image, text, ids, owners = split()
    metric = CrossModalRecall()
    with pytest.raises(InputError, match=rf"embedding of image id 3 is {value}; expected a finite"):
        metric.update(image.index_fill(0, torch.tensor(3), value), text, ids, owners)
    with pytest.raises(InputError, match=rf"a caption of image id 0 is {value}; expected a finite"):
        metric.update(image, text * value, ids, owners)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_error_compute():
    image, text, ids, owners = split()
    metric = CrossModalRecall()
    with pytest.raises(ValueError, match="0 images and 0 captions; expected both"):
        metric.compute()
    metric.update(image, text[:0], ids, owners[:0])
    with pytest.raises(ValueError, match="11 images and 0 captions; expected both"):
        metric.compute()
    metric.reset()
    metric.update(image[:10], text, ids[:10], owners)
    with pytest.raises(ValueError, match="text_image_ids holds 10; expected an id of image_ids"):
        metric.compute()
    metric.reset()
    metric.update(image, text, ids, owners)
    metric.update(image[:, :4], text[:, :4], ids, owners)
    with pytest.raises(ValueError, match=r"widths \[4, 8\]; expected one"):
        metric.compute()
    metric.reset()
    metric.update(image, text, ids, owners, torch.arange(len(text)))
    metric.update(image, text, ids, owners.flip(0), torch.arange(len(text)))
    with pytest.raises(ValueError, match="text id 0 belongs to more than one image"):
        metric.compute()


# ---------------------------------------------------------------------- torchmetrics' conventions


def halves(data):
    """Two metrics that have seen the first and the other images."""
    metrics = [CrossModalRecall(), CrossModalRecall()]
    for metric, rows in zip(metrics, ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10]), strict=True):
        metric.update(*batch(data, rows, with_text_ids=True))
    return metrics


@pytest.mark.parametrize("as_dict", [False, True])
def test_merge_state(as_dict):
    data = split()
    first, second = halves(data)
    first.compute()  # what it found then is no longer true
    first.merge_state(second.metric_state if as_dict else second)
    assert computed(first) == pytest.approx(expected(data))
    fresh = CrossModalRecall()
    fresh.merge_state(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns of a metric that has seen nothing
        assert computed(fresh) == pytest.approx(expected(data))


@pytest.mark.parametrize("copied", [CrossModalRecall.clone, copy.deepcopy,
                                    lambda metric: pickle.loads(pickle.dumps(metric))])  # fmt: skip
def test_copies_go_their_own_way(copied):
    data = split()
    metric = CrossModalRecall()
    metric.update(*batch(data, [0, 1, 2, 3]))
    other = copied(metric)
    other.update(*batch(data, [4, 5, 6, 7, 8, 9, 10]))
    assert computed(other) == pytest.approx(expected(data))
    assert len(metric.image_ids) == 1
    metric.reset()
    assert computed(other) == pytest.approx(expected(data))


def test_compute_on_cpu_and_other_arguments_of_every_metric():
    data = split()
    metric = CrossModalRecall(compute_on_cpu=True, compute_with_cache=False)
    metric.update(*data)
    assert computed(metric) == pytest.approx(expected(data))
    assert all(value.device.type == "cpu" for value in metric.image)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `top_k`"):
        CrossModalRecall(top_k=3)


def test_a_dtype_does_not_change_ids():
    data = split()
    ids = [part + 2**40 for part in data[2:]]
    metric = MetricCollection([CrossModalRecall()])
    metric.update(*data[:2], *ids)
    metric.set_dtype(torch.float16).half()
    assert metric.compute()["rsum"].item() == pytest.approx(expected(data)["rsum"])


def test_metric_collection():
    """Members with equal states share them, and the names of two of a kind are kept apart."""
    data = split()
    one = MetricCollection([CrossModalRecall()], prefix="val/")
    two = MetricCollection({"a": CrossModalRecall(), "b": CrossModalRecall()})
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10]):
        for collection in (one, two):
            collection.update(*batch(data, rows))
    found = {key: value.item() for key, value in one.compute().items()}
    exact = expected(data)
    assert found == pytest.approx({f"val/{key}": value for key, value in exact.items()})
    found = two.compute()
    assert len(found) == 2 * len(exact)
    assert found["a_rsum"] == found["b_rsum"] == pytest.approx(exact["rsum"])
    two.reset()
    assert len(two["b"].image_ids) == 0


def test_what_torchmetrics_asks_of_a_class():
    assert CrossModalRecall.higher_is_better is True
    assert CrossModalRecall.is_differentiable is False
    assert CrossModalRecall.full_state_update is False
    assert (CrossModalRecall.plot_lower_bound, CrossModalRecall.plot_upper_bound) == (0, 100)


@pytest.mark.extras
def test_plot():
    """One result, several, the metric's own, in a new figure or in given axes."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    data = split()
    metric = CrossModalRecall()
    metric.update(*data)
    result = metric.compute()
    recalls = [key for key in result if "_r" in key]
    figure, given = pyplot.subplots()
    for values, ax in ((None, None), (result, given), ([result, result], None)):
        found, drawn = metric.plot(values, ax)
        assert isinstance(found, Figure)
        assert isinstance(drawn, Axes)
        assert drawn.get_legend_handles_labels()[1] == recalls
        points = [line.get_ydata().tolist() for line in drawn.get_lines()]
        count = len(values) if isinstance(values, list) else 1
        assert points == [pytest.approx([result[key].item()] * count) for key in recalls]
        low, high = drawn.get_ylim()
        assert low < 0
        assert high > 100
    assert metric.plot(result, given)[0] is figure
    pyplot.close("all")


WORKER = """
import json, sys, warnings
import torch
from itmkit.checks import InputError
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
    try:
        results[name] = {key: value.item() for key, value in metric.compute().items()}
    except InputError as error:  # the same on every process
        results[name] = str(error)
        continue
    images = sum(len(call[2]) for call in calls[rank])
    assert sum(len(ids) for ids in metric.image_ids) == images  # own states are back after compute
    metric.sync()
    shared = len(metric.image_ids)
    metric.unsync()
    assert shared == sum(len(call[2]) for own in calls for call in own)
with open(f"{folder}/out.{rank}", "w") as file:
    json.dump(results, file)
leave()
"""


def test_ddp(tmp_path):
    """Two processes, padded and unequal shares, and one without any data."""
    data = split()
    with_ids = {"with_text_ids": True}
    padded = list(DistributedSampler(range(11), num_replicas=1, rank=0, shuffle=False))
    shares = [list(DistributedSampler(range(11), 2, rank, shuffle=False)) for rank in (0, 1)]
    assert sum(map(len, shares)) == len(padded) + 1  # the sampler repeats image 0
    cases = {
        "padded": [[batch(data, rows, **with_ids)] for rows in shares],
        "half": [[[x.half() if x.is_floating_point() else x
                   for x in batch(data, rows, **with_ids)]] for rows in shares],
        "unequal": [[batch(data, [0, 1, 2], **with_ids), batch(data, [3, 4, 5, 6, 7], **with_ids)],
                    [batch(data, [8, 9, 10, 2, 1], **with_ids)]],
        "no_ids": [[batch(data, list(range(5)))], [batch(data, list(range(5, 11)))]],
        "no_ids_padded": [[batch(data, rows)] for rows in shares],
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
        for name in ("padded", "unequal", "no_ids", "one_idle"):
            assert results[name] == pytest.approx(exact), name
        assert results["no_ids_padded"].startswith("image id 50 occurs 2 times without text_ids")
        image, text, ids, owners = data
        half = expected((image.half().double(), text.half().double(), ids, owners))
        assert results["half"] == pytest.approx(half)
