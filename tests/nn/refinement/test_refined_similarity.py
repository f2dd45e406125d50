from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from masked_tokens import lengths_mask
from tensor_memory import LargestTensor, kept_for_backward
from torch import Tensor
from torch.utils._pytree import tree_map_only

from itmkit.nn import RefinedSimilarity, l2_normalize
from itmkit.nn.refinement import refined_similarity as source

REASONING = pytest.mark.parametrize("reasoning", ["sgr", "saf"])
FOCAL = pytest.mark.parametrize("focal", ["none", "equal", "prob", "global"])
GOLDEN = pytest.mark.parametrize("name", ["SGR", "SAF"])

# Names of the golden weights, and ours.
GRU_PARTS = {"img_rnn": "visual.gru", "cap_rnn": "textual.gru"}
GRU_LEAVES = {
    "weight_ih_l0": "input.weight",
    "weight_hh_l0": "hidden.weight",
    "bias_ih_l0": "input.bias",
    "bias_hh_l0": "hidden.bias",
}
PARTS = {
    "scan_attention.fcq": "visual.attention.query",
    "scan_attention.fck": "visual.attention.key",
    "rel_q": "visual.relation_query",
    "rel_k": "visual.relation_key",
    "sim_tranloc_w": "local_similarity",
    "sim_tranglo_w": "global_similarity",
    "sim_eval_w": "logit",
    "SAF_module.attn_sim_w": "reasoning.weight",
    "SAF_module.bn": "reasoning.norm",
} | {
    f"{side}_global_w.embedding_{theirs}": f"{ours_side}.pool.{ours}"
    for side, ours_side in (("v", "visual"), ("t", "textual"))
    for theirs, ours in (
        ("local.0", "local"),
        ("local.1", "local_norm"),
        ("global.0", "guide"),
        ("global.1", "guide_norm"),
        ("common.0", "weight"),
    )
}


def golden_module(values: dict[str, Tensor], name: str, focal: str = "none") -> RefinedSimilarity:
    parts = dict(PARTS)
    for step in range(sum(key.endswith("graph_query_w.weight") for key in values)):
        for theirs, ours in (("graph_query_w", "query"), ("graph_key_w", "key")):
            parts[f"SGR_module.{step}.{theirs}"] = f"reasoning.steps.{step}.{ours}"
        parts[f"SGR_module.{step}.sim_graph_w"] = f"reasoning.steps.{step}.out"
    module = RefinedSimilarity(
        values["image"].shape[-1],
        len(values["w.sim_tranloc_w.weight"]),
        reasoning=name.lower(),
        focal=focal,
        num_regions=values["image"].shape[1],
    ).eval()
    state = {}
    for key, value in values.items():
        if key.startswith("w."):
            part, _, leaf = key[2:].rpartition(".")
            if leaf in GRU_LEAVES:
                state[f"{GRU_PARTS[part]}.{GRU_LEAVES[leaf]}"] = value
            else:
                state[f"{parts[part]}.{leaf}"] = value
    shared = {k for k in module.state_dict() if k.startswith("textual.attention.")}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert set(missing) == shared
    assert not unexpected
    return module


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@GOLDEN
@pytest.mark.parametrize(
    ("focal", "expected"),
    [("none", "sim"), ("equal", "sim_focal_equal"), ("prob", "sim_focal_prob")],
)
@torch.no_grad()
def test_golden_tvrn_similarity(golden, name: str, focal: str, expected: str) -> None:
    values = tensors(golden(f"tvrn_{name}"))
    module = golden_module(values, name, focal)
    mask = lengths_mask(values["lengths"], values["text"].shape[1])
    logits = module(values["image"], values["text"], values["iou"], None, mask)
    torch.testing.assert_close(logits.sigmoid(), values[expected], atol=1e-5, rtol=0)


@GOLDEN
@torch.no_grad()
def test_golden_tvrn_intermediates(golden, name: str) -> None:
    values = tensors(golden(f"tvrn_{name}"))
    module = golden_module(values, name)
    image, relations = values["image"], values["iou"]
    refined = module.visual(image, relations)
    text = values["text"][:1]
    captions = module.textual.caption_part(text)
    part = module.textual.image_part(refined.context)
    own = module.textual.attention(text, text)
    weights = module.textual.weights(captions, part)
    visual = l2_normalize(weights @ refined.context[:, None])
    texts = module.textual.pairs(captions, part)
    found = {
        "image_semantic": module.visual.semantic(image),
        "image_geometric": module.visual.geometric(image, relations),
        "image_context": refined.context,
        "image_refined": refined.tokens,
        "image_global": refined.vector,
        "text0_self": own,
        "text0_visual": visual[:, 0],
        "text0_refined": texts.tokens[:, 0],
        "text0_global": texts.vector[:, 0],
    }
    for focal, key in (("none", "plain"), ("equal", "equal"), ("prob", "prob")):
        focused = golden_module(values, name, focal)
        found[f"context_{key}"] = focused.contexts(texts.tokens, None, refined)[:, 0]
    for key, value in found.items():
        torch.testing.assert_close(value, values[key], atol=1e-5, rtol=0, msg=key)


REGIONS = [4, 1, 3]
WORDS = [3, 5, 1, 5, 2]
each_mode = pytest.mark.parametrize("training", [True, False])
each_choice = pytest.mark.parametrize(
    ("reasoning", "focal"),
    [("sgr", "none"), ("saf", "equal"), ("sgr", "prob"), ("saf", "global")],
)


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Three images and five captions of different lengths, in no order."""
    return {
        "image": l2_normalize(torch.randn(3, 4, 8, dtype=dtype)),
        "text": l2_normalize(torch.randn(5, 5, 8, dtype=dtype)),
        "relations": (torch.rand(3, 4, 4, dtype=dtype) + torch.eye(4, dtype=dtype)).clamp_max(1),
        "image_mask": lengths_mask(REGIONS, 4),
        "text_mask": lengths_mask(WORDS, 5),
    }


def similarity(reasoning: str, focal: str = "none", **options: Any) -> RefinedSimilarity:
    """Small, with biases that are not the zeros of the start, and nodes that no ReLU silences."""
    torch.manual_seed(1)
    module = RefinedSimilarity(8, 6, reasoning=reasoning, focal=focal, **options)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.4 if name.endswith("out.bias") else 0.0, 0.2)
    return module


def gradients(module: RefinedSimilarity, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits, and the gradients of a sum in which every logit counts, of inputs and parameters."""
    floats = ("image", "text", "relations")
    inputs = inputs | {key: inputs[key].detach().clone().requires_grad_() for key in floats}
    logits = module(**inputs)
    loss = (logits * torch.arange(1, logits.numel() + 1).view(logits.shape).sin()).sum()
    sources = [*(inputs[key] for key in floats), *module.parameters()]
    return [logits.detach(), *torch.autograd.grad(loss, sources)]


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def naive_focal(weights: list[float], focal: str, relevance: list[float]) -> list[float]:
    if focal in ("equal", "prob"):
        confidence = [1.0 if focal == "equal" else math.sqrt(a) for a in weights]
        above = [
            sum((a - b) * root for b, root in zip(weights, confidence, strict=True))
            for a in weights
        ]
        if any(x > 1e-12 for x in above):
            weights = [a if x > 1e-12 else 0.0 for a, x in zip(weights, above, strict=True)]
    if focal == "global":
        weights = [a * r for a, r in zip(weights, relevance, strict=True)]
    return [a / sum(weights) for a in weights]


def naive_pair(module: RefinedSimilarity, image: Tensor, relations: Tensor, text: Tensor) -> Tensor:
    """The logit of one image and one caption, all of whose tokens are real."""
    refined = module.visual(image[None], relations[None])
    texts = module.textual(text[None], refined.context)
    regions, words = list(refined.tokens[0]), list(texts.tokens[0, 0])
    shares = [[float(word @ region) for region in regions] for word in words]
    shares = [[s if s > 0 else 0.1 * s for s in row] for row in shares]
    norms = [math.sqrt(sum(row[c] ** 2 for row in shares)) for c in range(len(regions))]
    relevance = [math.exp(module.smooth * float(v @ refined.vector[0])) for v in regions]
    vectors = [unit(module.global_similarity((refined.vector[0] - texts.vector[0, 0]) ** 2))]
    for word, row in zip(words, shares, strict=True):
        powers = [math.exp(module.smooth * s / norm) for s, norm in zip(row, norms, strict=True)]
        weights = [power / sum(powers) for power in powers]
        found = torch.zeros_like(word)
        for weight, region in zip(
            naive_focal(weights, module.focal, relevance), regions, strict=True
        ):
            found = found + weight * region
        vectors.append(unit(module.local_similarity((word - unit(found)) ** 2)))
    return module.logit(module.reasoning(torch.stack(vectors)[None]))[0, 0]


@torch.no_grad()
@REASONING
@FOCAL
def test_naive_loop_reference(reasoning: str, focal: str) -> None:
    module = similarity(reasoning, focal, smooth=4.0).double().eval()
    inputs = batch(torch.float64)
    logits = module(**inputs)
    for i, regions in enumerate(REGIONS):
        for j, words in enumerate(WORDS):
            expected = naive_pair(
                module,
                inputs["image"][i, :regions],
                inputs["relations"][i, :regions, :regions],
                inputs["text"][j, :words],
            )
            torch.testing.assert_close(logits[i, j], expected)


@torch.no_grad()
@REASONING
@FOCAL
def test_pair_alone_is_the_same(reasoning: str, focal: str) -> None:
    module = similarity(reasoning, focal).eval()
    inputs = batch()
    logits = module(**inputs)
    for i, regions in enumerate(REGIONS):
        for j, words in enumerate(WORDS):
            alone = module(
                inputs["image"][i : i + 1, :regions],
                inputs["text"][j : j + 1, :words],
                inputs["relations"][i : i + 1, :regions, :regions],
            )
            torch.testing.assert_close(alone, logits[i : i + 1, j : j + 1], atol=1e-5, rtol=0)


@torch.no_grad()
@REASONING
def test_pair_with_holes_in_its_masks_is_the_same_alone(reasoning: str) -> None:
    module = similarity(reasoning, chunk_pairs=3).eval()
    inputs = batch()
    inputs["text_mask"][1, [0, 2]] = inputs["image_mask"][0, 1] = False
    inputs["text_mask"][4] = torch.tensor([False, False, True, True, False])
    logits = module(**inputs)
    for i in range(3):
        for j in range(5):
            rows = {"text": slice(j, j + 1), "text_mask": slice(j, j + 1)}
            alone = {key: x[rows.get(key, slice(i, i + 1))] for key, x in inputs.items()}
            torch.testing.assert_close(
                module(**alone), logits[i : i + 1, j : j + 1], atol=1e-5, rtol=0
            )


@torch.no_grad()
@REASONING
@each_mode
def test_captions_in_any_order(reasoning: str, training: bool) -> None:
    module = similarity(reasoning, chunk_pairs=4).train(training)
    inputs = batch()
    logits = module(**inputs)
    order = torch.tensor([3, 0, 4, 2, 1])
    inputs |= {key: inputs[key][order] for key in ("text", "text_mask")}
    torch.testing.assert_close(module(**inputs), logits[:, order], atol=1e-5, rtol=0)


@torch.no_grad()
@REASONING
@each_mode
def test_padding_changes_nothing(reasoning: str, training: bool) -> None:
    """More padding on both sides, and no mask in place of a mask of ones."""
    module = similarity(reasoning, chunk_pairs=4).train(training)
    inputs = batch()
    longer = {
        key: torch.nn.functional.pad(x, pad)
        for (key, x), pad in zip(
            inputs.items(), [(0, 0, 0, 2), (0, 0, 0, 3), (0, 2, 0, 2), (0, 2), (0, 3)], strict=True
        )
    }
    torch.testing.assert_close(module(**longer), module(**inputs), atol=1e-5, rtol=0)
    ones = inputs | {key: torch.ones_like(inputs[key]) for key in ("image_mask", "text_mask")}
    plain = module(**(inputs | {"image_mask": None, "text_mask": None}))
    torch.testing.assert_close(plain, module(**ones), atol=1e-5, rtol=0)


def test_score_of_cached_images() -> None:
    module = similarity("sgr").eval()
    inputs = batch()
    logits = module(**inputs)
    images = module.visual(inputs["image"], inputs["relations"], inputs["image_mask"])
    some = type(images)(*tree_map_only(Tensor, lambda x: x[1:], tuple(images)))
    scores = module.score(some, inputs["text"], inputs["text_mask"])
    torch.testing.assert_close(scores, logits[1:], atol=1e-5, rtol=0)


@each_choice
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("chunk_pairs", [256, 3, 1])
def test_chosen_pairs_are_those_of_the_matrix(
    reasoning: str, focal: str, masked: bool, chunk_pairs: int
) -> None:
    module = similarity(reasoning, focal, chunk_pairs=chunk_pairs).double().eval()
    inputs = batch(torch.float64)
    if not masked:
        inputs |= {"image_mask": None, "text_mask": None}
    pairs = torch.tensor([[2, 4], [0, 0], [2, 0], [1, 3], [0, 0], [0, 4], [1, 1]])
    images = module.visual(inputs["image"], inputs["relations"], inputs["image_mask"])
    scores = module.score_pairs(images, inputs["text"], inputs["text_mask"], pairs)
    expected = module(**inputs)[pairs[:, 0], pairs[:, 1]]
    torch.testing.assert_close(scores, expected, atol=1e-10, rtol=0)
    parameters = [value for value in module.parameters() if value.requires_grad]
    ours, theirs = (
        torch.autograd.grad(found.square().sum(), parameters, allow_unused=True)
        for found in (scores, expected)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    nothing = module.score_pairs(images, inputs["text"], inputs["text_mask"], pairs[:0])
    assert nothing.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_chosen_pairs_in_half_precision_and_of_masks_with_holes(dtype: torch.dtype) -> None:
    module = similarity("sgr").to(dtype).eval()
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in batch().items()
    }
    mask = inputs["text_mask"].clone()
    mask[0], mask[1, 0] = False, False
    images = module.visual(inputs["image"], inputs["relations"], inputs["image_mask"])
    pairs = torch.cartesian_prod(torch.arange(len(images.vector)), torch.arange(len(mask))).flip(0)
    scores = module.score_pairs(images, inputs["text"], mask, pairs)
    expected = module.score(images, inputs["text"], mask)[pairs[:, 0], pairs[:, 1]]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=0)
    assert module.score_pairs(images, inputs["text"], mask, pairs[:0]).dtype == torch.float32


@each_choice
@each_mode
def test_chunks_change_nothing(reasoning: str, focal: str, training: bool) -> None:
    inputs = batch(torch.float64)
    inputs["text_mask"][1, 2] = False
    results = {}
    for chunk_pairs in (10**6, 7, 3, 1):
        module = similarity(reasoning, focal, chunk_pairs=chunk_pairs).double().train(training)
        with torch.no_grad():
            scores = module(**inputs)
        results[chunk_pairs] = [scores, *gradients(module, inputs), *module.buffers()]
    whole = results.pop(10**6)
    for chunked in results.values():
        for a, b in zip(chunked, whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_batch_norm_of_saf_sees_all_real_similarities() -> None:
    """Running statistics as those of all nodes of all pairs, each computed alone."""
    module = similarity("saf", chunk_pairs=3).double()
    inputs = batch(torch.float64)
    logits: list[Tensor] = []
    handle = module.reasoning.weight.register_forward_hook(
        lambda part, args, out: logits.append(out.flatten())
    )
    module.eval()
    for i, regions in enumerate(REGIONS):
        for j, words in enumerate(WORDS):
            image = inputs["image"][i : i + 1, :regions]
            relations = inputs["relations"][i : i + 1, :regions, :regions]
            module(image, inputs["text"][j : j + 1, :words], relations)
    handle.remove()
    seen = torch.cat(logits)
    assert len(seen) == len(REGIONS) * sum(1 + 2 * words for words in WORDS)
    module.train()(**inputs)
    norm = module.reasoning.norm
    torch.testing.assert_close(norm.running_mean[0], 0.1 * seen.mean())
    torch.testing.assert_close(norm.running_var[0], 0.9 + 0.1 * seen.var())
    assert int(norm.num_batches_tracked) == 1


@REASONING
def test_dropout_is_the_same_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, reasoning: str
) -> None:
    """Chunks that are computed again drop what they dropped; one seed gives one result."""
    module = similarity(reasoning, dropout=0.5, chunk_pairs=3)
    inputs = batch()
    results = []
    for _ in range(2):
        torch.manual_seed(2)
        results.append(gradients(module, inputs))
    assert not torch.equal(gradients(module, inputs)[0], results[0][0])

    def kept(function: Callable[..., Tensor], *args: Any, use_reentrant: bool) -> Tensor:
        return function(*args)

    monkeypatch.setattr(source, "checkpoint", kept)
    torch.manual_seed(2)
    results.append(gradients(module, inputs))
    for again in results[1:]:
        for a, b in zip(again, results[0], strict=True):
            torch.testing.assert_close(a, b)


@REASONING
@each_mode
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(reasoning: str, training: bool, value: float) -> None:
    inputs = batch()
    inputs["text_mask"][1, 2] = False
    clean = gradients(similarity(reasoning, "global", chunk_pairs=4).train(training), inputs)
    image_mask, text_mask = inputs["image_mask"], inputs["text_mask"]
    related = image_mask.unsqueeze(1) & image_mask.unsqueeze(2)
    for key, real in (
        ("image", image_mask.unsqueeze(-1)),
        ("text", text_mask.unsqueeze(-1)),
        ("relations", related),
    ):
        inputs[key] = inputs[key].masked_fill(~real, value)
    filled = gradients(similarity(reasoning, "global", chunk_pairs=4).train(training), inputs)
    for a, b in zip(filled, clean, strict=True):
        assert torch.equal(a, b)
    for grad, real in zip(filled[1:], (image_mask, text_mask, related), strict=False):
        assert not grad[~real].any()


@each_choice
@each_mode
def test_item_without_a_token_is_finite(reasoning: str, focal: str, training: bool) -> None:
    module = similarity(reasoning, focal, chunk_pairs=4).train(training)
    inputs = batch()
    inputs["image_mask"][1] = inputs["text_mask"][3] = False
    logits, image_grad, text_grad, *rest = gradients(module, inputs)
    assert not image_grad[1].any()
    assert not text_grad[3].any()
    assert all(x.isfinite().all() for x in [logits, image_grad, text_grad, *rest])


@REASONING
@each_mode
@pytest.mark.parametrize(("n", "m"), [(1, 5), (3, 1), (1, 1)])
def test_one_row_or_column(reasoning: str, training: bool, n: int, m: int) -> None:
    inputs = batch(torch.float64)
    sizes = {"text": m, "text_mask": m}
    inputs = {key: x[: sizes.get(key, n)] for key, x in inputs.items()}
    whole = gradients(similarity(reasoning).double().train(training), inputs)
    parts = gradients(similarity(reasoning, chunk_pairs=2).double().train(training), inputs)
    assert whole[0].shape == (n, m)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@REASONING
@each_mode
@pytest.mark.parametrize(("n", "m"), [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_shape_of_nothing(reasoning: str, training: bool, n: int, m: int, masked: bool) -> None:
    module = similarity(reasoning).train(training)
    sizes = {"text": m, "text_mask": m}
    inputs: dict[str, Any] = {key: x[: sizes.get(key, n)] for key, x in batch().items()}
    if not masked:
        inputs |= {"image_mask": None, "text_mask": None}
    logits = module(**inputs)
    assert logits.shape == (n, m)
    logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@REASONING
@FOCAL
@pytest.mark.parametrize(("num_regions", "chunk_pairs"), [(None, 3), (4, 256)])
def test_every_parameter_has_a_gradient(
    reasoning: str, focal: str, num_regions: int | None, chunk_pairs: int
) -> None:
    module = similarity(reasoning, focal, num_regions=num_regions, chunk_pairs=chunk_pairs)
    inputs: dict[str, Any] = batch()
    if num_regions is not None:
        inputs["image_mask"] = None
    logits = module(**inputs)
    (logits * torch.arange(logits.numel()).view(logits.shape).sin()).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "bias" not in name:  # those of keys and weights under a softmax cancel
            assert parameter.grad.any(), name


def test_one_attention_is_shared() -> None:
    module = similarity("sgr")
    assert module.visual.attention is module.textual.attention
    assert not any(name.startswith("textual.attention") for name, _ in module.named_parameters())


@each_choice
@each_mode
def test_memory_is_bounded_forward_and_backward(reasoning: str, focal: str, training: bool) -> None:
    n, m, regions, words, dim, width = 8, 18, 4, 5, 16, 6
    text = torch.randn(m, words, dim, requires_grad=True)
    mask = lengths_mask(torch.arange(m) % words + 1, words)
    # What every image, every caption and every pair has.
    bound = max(n * 2 * regions * 3 * dim, m * words * 3 * dim, n * m)
    if reasoning == "saf" and training:
        bound = max(bound, n * m * (1 + 2 * words) * width)
    assert bound < n * m * 2 * words * dim / 2  # the words of all pairs

    def run(chunk_pairs: int) -> tuple[int, int]:
        """The largest tensor, and the bytes of the memory kept for the backward pass."""
        module = RefinedSimilarity(
            dim, width, reasoning=reasoning, focal=focal, chunk_pairs=chunk_pairs
        ).train(training)
        images = module.visual(torch.randn(n, regions, dim), torch.rand(n, regions, regions))
        with LargestTensor() as largest:
            with kept_for_backward() as kept:
                logits = module.score(images, text, mask)
            logits.sum().backward()
        return largest.elements, sum(kept.values())

    largest, kept = run(chunk_pairs=6)
    assert largest <= bound
    assert kept < run(chunk_pairs=10**6)[1] / 4


@each_choice
@each_mode
def test_gradcheck(reasoning: str, focal: str, training: bool) -> None:
    module = RefinedSimilarity(3, 2, reasoning=reasoning, focal=focal, chunk_pairs=2)
    module.double().train(training)
    if reasoning == "sgr":
        for step in module.reasoning.steps:
            torch.nn.init.constant_(step.out.bias, 0.5)
    image = l2_normalize(torch.randn(2, 3, 3, dtype=torch.float64)).requires_grad_()
    text = l2_normalize(torch.randn(3, 3, 3, dtype=torch.float64)).requires_grad_()
    relations = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    image_mask, text_mask = lengths_mask([3, 2], 3), lengths_mask([2, 3, 1], 3)
    assert torch.autograd.gradcheck(
        lambda image, text, relations: module(image, text, relations, image_mask, text_mask),
        (image, text, relations),
        fast_mode=True,
    )


@REASONING
@each_mode
@pytest.mark.parametrize(
    ("dtype", "chunk_pairs"), [(torch.float16, 7), (torch.bfloat16, 7), (torch.bfloat16, 256)]
)
def test_half_precision(
    reasoning: str, training: bool, dtype: torch.dtype, chunk_pairs: int
) -> None:
    module = similarity(reasoning, smooth=2.0, chunk_pairs=chunk_pairs).train(training)
    inputs = batch()
    exact = gradients(module, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(module, inputs)
    assert mixed[0].dtype == torch.float32
    assert [x.dtype for x in mixed] == [x.dtype for x in exact]
    torch.testing.assert_close(mixed[0], exact[0], atol=0.1, rtol=0)
    # Where a LeakyReLU takes another side a number is off: the direction as a whole holds.
    a, b = (torch.cat([x.flatten() for x in found[1:]]) for found in (mixed, exact))
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.8
    exact = gradients(module, inputs)  # the running statistics have moved
    halves = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    logits, *grads = gradients(module.to(dtype), halves)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact[0], atol=0.1, rtol=0)
    assert all(grad.isfinite().all() and grad.dtype == dtype for grad in grads)


@pytest.mark.parametrize(
    ("reasoning", "training", "masked", "chunk_pairs"),
    [("sgr", False, True, 2), ("saf", True, False, 256)],
)
def test_compile_fullgraph(reasoning: str, training: bool, masked: bool, chunk_pairs: int) -> None:
    torch.compiler.reset()
    module = similarity(reasoning, chunk_pairs=chunk_pairs).train(training)
    inputs: dict[str, Any] = {key: x[:2] for key, x in batch().items()}
    inputs |= {key: inputs[key][:, :3] for key in ("text", "text_mask")}  # few steps of the GRU
    if not masked:
        inputs |= {"image_mask": None, "text_mask": None}
    expected = module(**inputs)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), expected, atol=1e-5, rtol=0)


@REASONING
def test_state_dict_round_trip(reasoning: str) -> None:
    module, target = similarity(reasoning), RefinedSimilarity(8, 6, reasoning=reasoning)
    inputs = batch()
    module(**inputs)  # moves the running statistics
    target.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(**inputs), target.eval()(**inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"similarity_dim": 0}, "similarity_dim is 0; expected 1 or more"),
        ({"reasoning": "sfa"}, "reasoning is 'sfa'; expected one of 'sgr', 'saf'"),
        ({"focal": "glo"}, "focal is 'glo'; expected one of"),
        ({"chunk_pairs": 0}, "chunk_pairs is 0; expected 1 or more"),
        ({"smooth": 0.0}, "smooth is 0.0; expected a finite number above 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"num_regions": 0}, "num_regions is 0; expected 1 or more"),
    ],
)
def test_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefinedSimilarity(**({"dim": 4, "similarity_dim": 2} | options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 4, 9)}, r"image has the shape \(3, 4, 9\); expected .*8\)"),
        ({"text": torch.zeros(5, 8)}, r"text has the shape \(5, 8\); expected .*8\)"),
        (
            {"relations": torch.zeros(3, 4, 5)},
            r"relations has the shape \(3, 4, 5\); expected \(3, 4, 4\)",
        ),
        ({"image_mask": torch.ones(3, 4)}, "mask is .*; expected a bool tensor"),
        ({"text_mask": torch.ones(5, 6).bool()}, r"text_mask has the shape .*; expected \(5, 5\)"),
    ],
)
def test_input_error(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity("sgr")(**(batch() | change))
