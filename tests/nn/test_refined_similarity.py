from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from itmkit.nn import RefinedSimilarity, l2_normalize

REASONING = pytest.mark.parametrize("reasoning", ["sgr", "saf"])
FOCAL = pytest.mark.parametrize("focal", ["none", "equal", "prob", "global"])
GOLDEN = pytest.mark.parametrize("name", ["SGR", "SAF"])

# Names of the golden weights, and ours.
PARTS = {
    "scan_attention.fcq": "visual.attention.query",
    "scan_attention.fck": "visual.attention.key",
    "rel_q": "visual.relation_query",
    "rel_k": "visual.relation_key",
    "img_rnn": "visual.gru.gru",
    "cap_rnn": "textual.gru.gru",
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
            state[f"{parts[part]}.{leaf}"] = value
    shared = {k for k in module.state_dict() if k.startswith("textual.attention.")}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert set(missing) == shared
    assert not unexpected
    return module


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def words_mask(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size) < lengths[:, None]


@GOLDEN
@pytest.mark.parametrize(
    ("focal", "expected"),
    [("none", "sim"), ("equal", "sim_focal_equal"), ("prob", "sim_focal_prob")],
)
@torch.no_grad()
def test_golden_tvrn_similarity(golden, name: str, focal: str, expected: str) -> None:
    values = tensors(golden(f"tvrn_{name}"))
    module = golden_module(values, name, focal)
    mask = words_mask(values["lengths"], values["text"].shape[1])
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
