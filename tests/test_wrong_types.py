"""Arguments of a wrong type: what is clear is taken, all else is one error that says what it is."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from systems import SYSTEMS, make_batch
from tiny_matcher import TinyMatcher
from torch import Tensor, nn

import itmkit
from itmkit.checks import InputError
from itmkit.data import Batch, Images, Texts
from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    SigLIPLoss,
    TripletLoss,
)
from itmkit.losses.functional import adaptive_margin
from itmkit.metrics import CrossModalRecall
from itmkit.metrics.functional import (
    cross_modal_recall,
    five_fold_recall,
    recall_from_ranks,
    retrieval_ranks,
)
from itmkit.retrieval import (
    Encoding,
    Gallery,
    best_captions,
    best_images,
    encode,
    evaluate,
    pair_scores,
    score_matrix,
)

N, D = 6, 5
IDS = [3, 3, 5, 8, 9, 9]
#: the same ids, as a user may hold them
ID_FORMS = {
    "list": IDS,
    "tuple": tuple(IDS),
    "array": np.array(IDS),
    "int32": torch.tensor(IDS, dtype=torch.int32),
}
#: what cannot be ids, and how the error names it
NO_IDS = {
    "strings": ([f"{i}.jpg" for i in IDS], "a list of str"),
    "floats": (torch.ones(N), "a torch.float32 tensor"),
    "bools": (np.ones(N, dtype=bool), "a numpy.ndarray of bool"),
}
#: what cannot be scores or vectors
NO_NUMBERS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "array": (Tensor.numpy, "a numpy.ndarray of float32; expected a floating-point tensor"),
    "list": (Tensor.tolist, "a list of list; expected a floating-point tensor"),
    "integers": (Tensor.long, "a torch.int64 tensor; expected a floating-point tensor"),
    "none": (lambda _: None, "None; expected a floating-point tensor"),
}
SCORE_LOSSES: list[nn.Module] = [
    AdaptiveMarginTripletLoss(),
    HingeCrossEntropyLoss(),
    InfoNCELoss(),
    SigLIPLoss(),
    TripletLoss(),
    TripletLoss(negatives="all"),
]

name_of = partial(map, lambda loss: type(loss).__name__)


def vectors(count: int = 4) -> list[Tensor]:
    return list(torch.randn(count, N, D, generator=torch.Generator().manual_seed(0)))


def scores() -> Tensor:
    image, text, *_ = vectors()
    return image @ text.T


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()


# ---------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", SCORE_LOSSES, ids=name_of(SCORE_LOSSES))
@pytest.mark.parametrize("form", NO_NUMBERS)
def test_scores_that_are_none(loss: nn.Module, form: str) -> None:
    change, told = NO_NUMBERS[form]
    refused(lambda: loss(change(scores())), f"scores is {told}")


@pytest.mark.parametrize("loss", SCORE_LOSSES, ids=name_of(SCORE_LOSSES))
def test_ids_in_place_of_positives(loss: nn.Module) -> None:
    how = f"expected a bool tensor ({N}, {N}), such as image_ids[:, None] == text_image_ids"
    ids = torch.tensor(IDS)
    refused(lambda: loss(scores(), ids), f"positives is a torch.int64 tensor; {how}")
    refused(lambda: loss(scores(), IDS), f"positives is a list of int; {how}")
    same = (ids[:, None] == ids).numpy()
    refused(lambda: loss(scores(), same), f"positives is a numpy.ndarray of bool; {how}")
    refused(lambda: loss(scores(), ids > 3), "positives has the shape (6,); expected (6, 6)")


@pytest.mark.parametrize("loss", SCORE_LOSSES, ids=name_of(SCORE_LOSSES))
def test_positives_on_another_device(loss: nn.Module) -> None:
    there = torch.eye(N, dtype=torch.bool, device="meta")
    refused(lambda: loss(scores(), there), "positives is on meta; expected cpu")


@pytest.mark.parametrize("loss", SCORE_LOSSES, ids=name_of(SCORE_LOSSES))
def test_half_precision_scores(loss: nn.Module) -> None:
    half = loss(scores().half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(scores().half().float()))


VECTOR_LOSSES: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "hect": (HECTLoss(), ("image", "text")),
    "distillation": (
        MomentumDistillationLoss(feature_weight=1.0),
        ("image", "text", "teacher_image", "teacher_text"),
    ),
    "feature_distillation": (
        MomentumDistillationLoss(similarity_weight=0.0, feature_weight=1.0),
        ("image", "text", "teacher_image", "teacher_text"),
    ),
}


@pytest.mark.parametrize("name", VECTOR_LOSSES)
@pytest.mark.parametrize("form", NO_NUMBERS)
def test_vectors_that_are_none(name: str, form: str) -> None:
    loss, arguments = VECTOR_LOSSES[name]
    change, told = NO_NUMBERS[form]
    given = vectors(len(arguments))
    for place, argument in enumerate(arguments):
        wrong = [change(v) if i == place else v for i, v in enumerate(given)]
        refused(lambda wrong=wrong: loss(*wrong), f"{argument} is {told}")


@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_vectors_on_two_devices(name: str) -> None:
    loss, arguments = VECTOR_LOSSES[name]
    first, *rest = vectors(len(arguments))
    refused(lambda: loss(first, *(v.to("meta") for v in rest)), "text is on meta")


def _losses_with_ids(ids: object) -> dict[str, Callable[[], Tensor]]:
    image, text, *teachers = vectors()
    views = scores().repeat_interleave(2, 0).repeat_interleave(2, 1)
    queues = [vector[:N] for vector in vectors(6)[4:]]
    four = (image, text, *teachers)
    return {
        "hect": lambda: HECTLoss()(image, text, ids),
        "group_triplet": lambda: GroupTripletLoss()(views, image_ids=ids),
        "distillation": lambda: MomentumDistillationLoss()(*four, ids),
        "queue": lambda: MomentumDistillationLoss()(*four, torch.arange(N), *queues, ids),
    }


@pytest.mark.parametrize("name", _losses_with_ids(None))
@pytest.mark.parametrize("form", ID_FORMS)
def test_ids_of_any_form(name: str, form: str) -> None:
    expected = _losses_with_ids(torch.tensor(IDS))[name]()
    assert not torch.equal(expected, _losses_with_ids(torch.arange(10, 10 + N))[name]())
    torch.testing.assert_close(_losses_with_ids(ID_FORMS[form])[name](), expected)


@pytest.mark.parametrize("name", _losses_with_ids(None))
@pytest.mark.parametrize("form", NO_IDS)
def test_what_are_no_ids(name: str, form: str) -> None:
    wrong, told = NO_IDS[form]
    argument = "queue_ids" if name == "queue" else "image_ids"
    refused(_losses_with_ids(wrong)[name], f"{argument} is {told}; expected integers")
    refused(_losses_with_ids(IDS[1:])[name], f"{argument} has the shape (5,); expected (6,)")


def test_core_of_hect() -> None:
    loss, positive, negatives = HECTLoss().from_similarities, torch.rand(3), torch.rand(3, 2)
    refused(lambda: loss(positive.numpy(), negatives), "positive is a numpy.ndarray")
    refused(lambda: loss(positive, negatives.tolist()), "negatives is a list of list")
    refused(lambda: loss(positive, negatives, [[True]]), "valid is a list of list; expected a bool")


def test_margin_of_any_form() -> None:
    given = scores()
    expected = adaptive_margin(given, torch.tensor(0.25), min_rows=2)
    torch.testing.assert_close(adaptive_margin(given, 0.25, min_rows=2), expected)


def test_group_scores() -> None:
    refused(lambda: GroupTripletLoss()(scores().numpy()), "scores is a numpy.ndarray")


def test_queues() -> None:
    queue = np.zeros((2, D), dtype=np.float32)
    refused(
        lambda: MomentumDistillationLoss()(*vectors(), None, queue, torch.zeros(2, D)),
        "queue_image is a numpy.ndarray",
    )


# --------------------------------------------------------------------------------------- metrics


def _recalls(values: object, image_ids: object, owners: object) -> dict[str, Callable[[], object]]:
    def metric() -> object:
        recall = CrossModalRecall()
        recall.update(torch.eye(4), values, image_ids, owners)
        return recall.compute()

    return {
        "function": lambda: cross_modal_recall(values, image_ids, owners),
        "folds": lambda: five_fold_recall(values, image_ids, owners, folds=2),
        "metric": metric,
    }


def _shuffled() -> Tensor:
    return torch.eye(4)[[1, 0, 2, 3]].contiguous()


@pytest.mark.parametrize("name", ["function", "folds", "metric"])
@pytest.mark.parametrize("convert", [list, tuple, np.array], ids=["list", "tuple", "array"])
def test_recall_takes_ids_of_any_form(name: str, convert: Callable[[list[int]], object]) -> None:
    ids = [7, 2, 9, 4]
    expected = _recalls(_shuffled(), torch.tensor(ids), torch.tensor(ids))[name]()
    assert _recalls(_shuffled(), convert(ids), convert(ids))[name]() == expected
    assert expected["i2t_r1"] == 50


@pytest.mark.parametrize("name", ["function", "folds", "metric"])
def test_recall_names_what_is_wrong(name: str) -> None:
    ids, argument = [7, 2, 9, 4], "text" if name == "metric" else "scores"
    for change, told in NO_NUMBERS.values():
        refused(_recalls(change(_shuffled()), ids, ids)[name], f"{argument} is {told}")
    words = ["a", "b", "c", "d"]
    refused(_recalls(_shuffled(), words, ids)[name], "image_ids is a list of str")
    refused(_recalls(_shuffled(), ids, words)[name], "text_image_ids is a list of str")


def test_relevance_and_ranks() -> None:
    eye, ids = torch.eye(4), torch.arange(4)
    bools = eye.bool().numpy()
    told = "is a numpy.ndarray of bool; expected a"
    refused(
        lambda: cross_modal_recall(eye, ids, ids, relevance=bools),
        f"relevance {told} tensor (4, 4) of bools or grades, or Judgements",
    )
    refused(lambda: retrieval_ranks(eye, bools), f"relevant {told} bool tensor (4, 4)")
    assert recall_from_ranks([0, 7], np.array([0, 2])) == recall_from_ranks(
        torch.tensor([0, 7]), torch.tensor([0, 2])
    )
    refused(lambda: recall_from_ranks(torch.rand(3), [0]), "i2t_ranks is a torch.float32 tensor")


def test_text_ids() -> None:
    eye, ids = torch.eye(4), torch.arange(4)
    metric = CrossModalRecall()
    metric.update(eye, eye, ids, ids, [0, 1, 2, 3])
    assert metric.compute()["rsum"] == 600
    refused(lambda: metric.update(eye, eye, ids, ids, list("abcd")), "text_ids is a list of str")


# ------------------------------------------------------------------------------------- retrieval


def test_encoding_fields() -> None:
    told = "expected a tensor with one row per item"
    refused(
        lambda: Encoding(vector=np.ones((2, 3))), f"vector is a numpy.ndarray of float64; {told}"
    )
    refused(lambda: Encoding(vector=[[1.0]]), f"vector is a list of list; {told}")
    refused(lambda: Encoding(vector=torch.tensor(1.0)), f"vector is a tensor without rows; {told}")


@pytest.mark.parametrize(
    "index",
    [2, np.int64(2), np.array(2), torch.tensor(2)],
    ids=["int", "NumPy integer", "array", "tensor"],
)
def test_one_row_is_kept_as_a_row(index: object) -> None:
    vector = torch.arange(12.0).view(4, 3)
    assert torch.equal(Encoding(vector=vector)[index].vector, vector[2:3])


def test_index_of_rows_alone() -> None:
    encoding = Encoding(vector=torch.arange(12.0).view(4, 3))
    refused(lambda: encoding[:, 0], "the index is a tuple of slice; expected rows alone")
    assert torch.equal(encoding[np.array([2, 0])].vector, encoding.vector[[2, 0]])


SEARCHES: dict[str, Callable[..., object]] = {
    "best_captions": lambda matcher, images, texts: best_captions(matcher, images, texts, 1),
    "best_images": lambda matcher, images, texts: best_images(matcher, texts, images, 1),
    "score_matrix": score_matrix,
    "pair_scores": lambda matcher, images, texts: pair_scores(
        matcher, images, texts, torch.tensor([[0, 1]])
    ),
    "gallery": lambda matcher, images, texts: Gallery(images, texts, [0, 1], [0, 1], [0, 1]),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_tensors_in_place_of_encodings(name: str) -> None:
    search, matcher, vector = SEARCHES[name], TinyMatcher(), torch.eye(2, 4)
    good = Encoding(vector=vector)
    told = "is a torch.float32 tensor; expected an Encoding, such as matcher."
    refused(lambda: search(matcher, vector, good), f"images {told}encode_image gives")
    refused(lambda: search(matcher, good, vector), f"texts {told}encode_text gives")


def test_pairs_and_gallery() -> None:
    matcher, two = TinyMatcher(), Encoding(vector=torch.eye(2, 4))
    told = "expected an int64 tensor (p, 2)"
    refused(lambda: pair_scores(matcher, two, two, [(0, 1)]), f"pairs is a list of tuple; {told}")
    gallery = Gallery(two, two, [4, 5], np.array([4, 5]), (0, 1))
    assert evaluate(matcher, gallery)["rsum"] == 600
    refused(lambda: evaluate(matcher, two), "gallery is an Encoding; expected a Gallery")
    refused(lambda: Gallery(two, two, [4], [4, 5], [0, 1]), "image_ids has the shape (1,)")
    refused(lambda: Gallery(two, two, ["a", "b"], [4, 5], [0, 1]), "image_ids is a list of str")


# --------------------------------------------------------------------------------------- systems


@pytest.mark.parametrize("name", ["mate", "daim", "tvrn_sgr"])
def test_methods_take_images_and_texts(name: str) -> None:
    case = SYSTEMS[name]
    matcher, batch = case.make(), make_batch(case)
    features = batch.images.features
    told = "images is a torch.float32 tensor; expected Images, such as Images(features=images)"
    refused(lambda: matcher.encode_image(features), told)
    refused(lambda: matcher(features, batch.texts), told)
    refused(
        lambda: matcher.score(features, features), "images is a torch.float32 tensor; expected an"
    )
    told = "texts is a list of str; expected Texts, such as pad_texts([tokenizer.encode("
    refused(lambda: matcher.encode_text(["a dog"]), told)
    refused(lambda: matcher(batch.images, ["a dog"]), told)
    refused(
        lambda: matcher.encode_image(Images(features.numpy())),
        "images.features is a numpy.ndarray of float32; expected a tensor",
    )
    refused(
        lambda: matcher.encode_text(Texts(batch.texts.ids, None)),
        "texts.mask is None; expected a tensor",
    )


def test_forward_of_anyones_system() -> None:
    matcher = TinyMatcher()
    refused(lambda: matcher(torch.zeros(1, 3, 2, 2), ["a dog"]), "images is a torch.float32 tensor")
    refused(lambda: matcher.training_step([1, 2], 0), "batch is a list of int; expected a Batch")


def test_batches() -> None:
    batch = make_batch(SYSTEMS["daim"])
    listed = Batch(
        batch.images,
        batch.texts,
        batch.image_ids.tolist(),
        batch.text_image_ids.numpy(),
        batch.text_ids.tolist(),
    )
    assert torch.equal(listed.image_ids, batch.image_ids)
    assert torch.equal(listed.text_image_ids, batch.text_image_ids)
    rest = (batch.image_ids, batch.text_image_ids, batch.text_ids)
    refused(lambda: Batch(batch.images.features, batch.texts, *rest), "images is a torch.float32")
    refused(lambda: Batch(batch.images, ["a dog"], *rest), "texts is a list of str")
    refused(lambda: Batch(batch.images, batch.texts, "ab", *rest[1:]), "image_ids is a str")
    matcher = SYSTEMS["daim"].make()
    refused(lambda: encode(matcher, batch), "batches is a Batch; expected an iterable of Batch")
    refused(lambda: encode(matcher, ["a dog"]), "batch is a str; expected a Batch")


# --------------------------------------------------------------------------------------- package


def test_submodules_after_a_bare_import() -> None:
    code = (
        "import itmkit; print(itmkit.checks.InputError.__name__, hasattr(itmkit, 'looses'), "
        "'losses' in dir(itmkit))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["InputError", "False", "True"]


def test_all_submodules_are_listed() -> None:
    names = {module.name for module in pkgutil.iter_modules(itmkit.__path__)} - {"__main__"}
    assert names >= {"losses", "nn", "systems"}
    assert names <= set(dir(itmkit))
    with pytest.raises(AttributeError, match="no attribute 'looses'"):
        itmkit.looses  # noqa: B018
