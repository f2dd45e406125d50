"""One HTML file of what a run has learnt: numbers, curves, right and wrong results, and why."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import itmkit
from itmkit.checks import InputError
from itmkit.extras import require_extra
from itmkit.files import check_new_file, read_yaml, user_path, write_text
from itmkit.report.evaluated import EvaluatedRun, Split, flat_config
from itmkit.report.explain import caption_words, draw_explanations
from itmkit.report.page import data_address, figure_webp, render, thumbnail
from itmkit.report.run_charts import score_charts, top_counts, training_charts
from itmkit.retrieval import Protocol, best_captions, best_images

BUDGET = 1_300_000  # bytes of pictures; with charts and text a page stays below 2 MB
SIDE = 160  # pixels of a picture's longer side
HITS = 5  # of a query
QUERIES = {"worst": 8, "best": 6}  # in each direction
PAIRS = 10  # wrong pairs of the highest scores
MAPS = 4  # pairs that are explained
_NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "median rank", "meanr": "mean rank"}
_SIDES = {"i2t": "image to text", "t2i": "text to image"}


def write_report(
    run: Path,
    path: Path | None = None,
    *,
    other: Path | None = None,
    split: Split = "val",
    protocol: Protocol | str | int | None = None,
    photos: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Evaluate a run and write the report: one file that needs no other and no network.

    Args:
        run: folder of the run.
        path: of the file; None: ``report.html`` in the folder.
        other: folder of a second run on the same captions, to compare with.
        split: ``"val"`` or ``"test"``.
        protocol: a name of :data:`itmkit.metrics.PROTOCOLS`, or a number of folds; None: all is
            searched together.
        photos: folder or files of the photos, for a run on stored features, which knows their
            names alone.
        device: where the models are evaluated.

    Returns:
        The path.

    Raises:
        FileNotFoundError: a run, its checkpoint, its data or one of the photos is gone.
        InputError: matplotlib is not installed, there is no such split, it does not fit the
            protocol, or the runs are of different captions.
    """
    require_extra("report", "matplotlib>=3.9")
    target = run / "report.html" if path is None else user_path(path)
    check_new_file("output", target)
    own = EvaluatedRun.of(run, split, protocol=protocol, photos=photos, device=device)
    second = None
    if other is not None:
        second = EvaluatedRun.of(other, split, protocol=protocol, device=device)
        _check_same(own, second)
    write_text(target, render("report.html.jinja", **_content(own, second, photos)))
    return target


def _check_same(own: EvaluatedRun, second: EvaluatedRun) -> None:
    ours, theirs = (
        (one.dataset.captions, list(one.dataset.names), one.table.gallery.text_ids.tolist())
        for one in (own, second)
    )
    if ours != theirs:
        raise InputError(
            f"{second.folder} is evaluated on other images or captions than {own.folder}; expected "
            "the same"
        )


class _Pictures:
    """Small pictures of a run, until their budget is spent."""

    def __init__(self, run: EvaluatedRun) -> None:
        self.run, self.left = run, BUDGET
        self.found: dict[int, str | None] = {}

    def __call__(self, row: int) -> str | None:
        if row not in self.found:
            self.found[row] = thumbnail(self.run.picture(row), side=SIDE, quality=60)
        return self.spend(self.found[row])

    def spend(self, content: str | None) -> str | None:
        """The content, if there is room for it."""
        if content is None or len(content) > self.left:
            return None
        self.left -= len(content)
        return content


def _content(
    own: EvaluatedRun, second: EvaluatedRun | None, photos: str | Path | None
) -> dict[str, Any]:
    pictures = _Pictures(own)
    gallery = own.table.gallery
    environment = own.folder / "environment.yaml"
    facts = read_yaml(environment) if environment.is_file() else {}
    config = (own.folder / "config.yaml").read_text(encoding="utf-8")
    cut = f"; the first of {own.whole:,}" if len(gallery.images) < own.whole else ""
    maps = _maps(own, pictures)  # first: they have to fit into the budget
    return {
        "name": own.folder.parent.name if own.folder.name[:1].isdigit() else own.folder.name,
        "system": type(own.model).__name__,
        "run": own.folder.name,
        "version": itmkit.__version__,
        "gallery": f"{own.split}: {len(gallery.images):,} images × {len(gallery.texts):,} captions"
        + cut,
        "protocol": own.protocol or "the whole split is searched together",
        "folds": len(own.ranks),
        "has_pictures": own.photos is not None or own.picture(0) is not None,
        "second_stage": _second_stage(own),
        "recall": _recall_rows(own, second),
        "second": second and second.folder.parent.name + "/" + second.folder.name,
        "curves": training_charts(own, second),
        "charts": score_charts(own),
        "hubs": _hubs(own, pictures),
        "queries": _queries(own, pictures),
        "pairs": _wrong_pairs(own, pictures),
        "maps": maps,
        "changes": None if second is None else _changes(own, second),
        "config": config,
        "environment": yaml.safe_dump(facts, sort_keys=False, allow_unicode=True),
        "report_command": _report_command(own, second, photos),
        "command": facts.get("command", ""),
        "commit": (facts.get("git") or {}).get("commit"),
    }


def _report_command(
    own: EvaluatedRun, second: EvaluatedRun | None, photos: str | Path | None
) -> str:
    """What was typed for the page, or would be."""
    protocol = (own.protocol or "").removesuffix(" folds")
    here = Path.cwd()
    folders = [one.folder for one in (own, second) if one is not None]
    names = [one.relative_to(here) if one.is_relative_to(here) else one for one in folders]
    words = ["itmkit", "report", *map(str, names), "--split", own.split]
    words += ["--protocol", protocol] if protocol else []
    words += ["--photos", str(photos)] if photos else []
    return shlex.join(words)


def _second_stage(own: EvaluatedRun) -> str:
    table = own.table
    if not table.rerank_top_k:
        return ""
    return (
        f"the best {table.rerank_top_k} of a query are put in order by the second stage, with a "
        f"weight of {table.rerank_weight:g}; charts of scores are of the first stage"
    )


def _recall_rows(own: EvaluatedRun, second: EvaluatedRun | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for side, title in _SIDES.items():
        for key, name in _NAMES.items():
            full = f"{side}_{key}"
            low, high = own.intervals[full]
            rows.append({"side": title, "name": name, "low": low, "high": high, "key": full})
    low, high = own.intervals["rsum"]
    rows.append({"side": "both", "name": "rSum", "low": low, "high": high, "key": "rsum"})
    for row in rows:
        row["value"] = own.recall[row["key"]]
        if second is not None:
            row["other"] = second.recall[row["key"]]
            row["change"] = row["value"] - row["other"]
    return rows


def _hubs(own: EvaluatedRun, pictures: _Pictures) -> dict[str, Any]:
    images = top_counts(own.table.scores, dim=0)
    texts = top_counts(own.table.scores, dim=1)
    return {
        "images": [
            {"picture": pictures(row), "name": own.name(row), "text": f"{int(images[row]):,} times"}
            for row in images.topk(min(6, len(images))).indices.tolist()
        ],
        "captions": [
            {"text": own.caption(column), "count": int(texts[column])}
            for column in texts.topk(min(6, len(texts))).indices.tolist()
        ],
    }


def _queries(own: EvaluatedRun, pictures: _Pictures) -> list[dict[str, Any]]:
    """The queries with the worst ranks, and those found by the widest margin, with results."""
    rows = own.table.rows()
    found = []
    for side, (ranks, right, wrong) in enumerate(
        zip(own.query_ranks, own.positives, own.negatives, strict=True)
    ):
        margin = (right - wrong).masked_fill(ranks != 0, -torch.inf)
        margin[~margin.isfinite()] = -torch.inf
        worst = ranks.topk(min(QUERIES["worst"], len(ranks))).indices
        best = margin.topk(min(QUERIES["best"], len(margin))).indices
        chosen = [("worst", int(row)) for row in worst if ranks[row] > 0]
        chosen += [("best", int(row)) for row in best if margin[row].isfinite()]
        for kind, row in chosen:
            query = torch.tensor([row])
            if side == 0:
                values, items = best_captions(own.table, rows.images[query], rows.texts, HITS)
            else:
                values, items = best_images(own.table, rows.texts[query], rows.images, HITS)
            hits = []
            for score, item in zip(values[0].tolist(), items[0].tolist(), strict=True):
                true = own.relevant[row, item] if side == 0 else own.relevant[item, row]
                hits.append(
                    {
                        "mark": "right" if true else "wrong",
                        "score": score,
                        "picture": pictures(item) if side else None,
                        "text": own.name(item) if side else own.caption(item),
                    }
                )
            found.append(
                {
                    "kind": kind,
                    "side": list(_SIDES)[side],
                    "rank": int(ranks[row]) + 1,
                    "heading": own.caption(row) if side else own.name(row),
                    "picture": None if side else pictures(row),
                    "hits": hits,
                }
            )
    return found


def _wrong_pairs(own: EvaluatedRun, pictures: _Pictures) -> list[dict[str, Any]]:
    """Pairs that do not match and score highest, each image and each caption once."""
    m = own.relevant.shape[1]
    best = own.wrong_scores.flatten().topk(min(400, own.relevant.numel()))
    found: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row, column = divmod(place, m)
        if ("image", row) in seen or ("text", column) in seen or score == -torch.inf:
            continue
        seen |= {("image", row), ("text", column)}
        found.append(
            {
                "picture": pictures(row),
                "name": own.name(row),
                "text": own.caption(column),
                "score": score,
                "right": float(own.positives[1][column]),
            }
        )
        if len(found) == PAIRS:
            break
    return found


def _maps(own: EvaluatedRun, pictures: _Pictures) -> list[dict[str, Any]]:
    """Explained pairs: found ones, and the wrong pair of the highest score."""
    margin = (own.positives[1] - own.negatives[1]).nan_to_num(-torch.inf, neginf=-torch.inf)
    ranked, images = margin.argsort(descending=True).tolist(), own.table.gallery.text_image_ids
    first: dict[int, int] = {}  # of each image the caption of the widest margin
    for column in ranked[: 20 * MAPS]:
        first.setdefault(int(images[column]), column)
    columns = list(first.values())[: MAPS - 1]
    pairs = [
        (int(own.table.scores[:, c].masked_fill(~own.relevant[:, c], -torch.inf).argmax()), c, True)
        for c in columns
    ]
    place = int(own.wrong_scores.flatten().argmax())
    pairs.append((*divmod(place, own.relevant.shape[1]), False))
    found: list[dict[str, Any]] = []
    for row, column, right in pairs:
        try:
            content = _map(own, row, column)
        except InputError:  # a system that cannot explain, or a picture that cannot be read
            continue
        image = pictures.spend(content)
        if image is not None:
            found.append({"text": own.caption(column), "name": own.name(row), "image": image})
            found[-1]["mark"] = "right" if right else "wrong"
    return found


def _map(own: EvaluatedRun, row: int, column: int) -> str:
    from matplotlib.figure import Figure

    from itmkit.data.photo import read_photo

    explanations, boxes = own.explained(row, column)
    picture = own.picture(row)
    if isinstance(picture, Path):
        picture = read_photo(picture, side=256, max_pixels=100_000_000)
    preprocessing = own.dataset.preprocessing
    if picture is None:
        raise InputError(f"{own.name(row)} has no picture")
    array = np.asarray(picture.convert("RGB"))
    if preprocessing is not None:  # the part that the model saw
        array = preprocessing(picture).permute(1, 2, 0).contiguous().numpy()
    text, tokenizer = own.caption(column), own.items.tokenizer
    words = caption_words(tokenizer.words(text), tokenizer.encode(text).words)
    figure = Figure(facecolor="white")
    draw_explanations(explanations, array, words, boxes, figure=figure)
    return data_address(figure_webp(figure))


def _changes(own: EvaluatedRun, second: EvaluatedRun) -> dict[str, Any]:
    """What differs in the configuration, and the captions that were won and lost at rank 1."""
    ours, theirs = flat_config(own.folder), flat_config(second.folder)
    names = sorted(ours.keys() | theirs.keys())
    config = [
        (name, ours.get(name, "–"), theirs.get(name, "–"))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    ranks, before = own.query_ranks[1], second.query_ranks[1]
    gain = before - ranks

    def listed(order: Tensor, sign: int) -> list[dict[str, Any]]:
        return [
            {"text": own.caption(c), "ours": int(ranks[c]) + 1, "theirs": int(before[c]) + 1}
            for c in order[:8].tolist()
            if sign * int(gain[c]) > 0
        ]

    won, lost = (ranks == 0) & (before > 0), (ranks > 0) & (before == 0)
    return {
        "config": config,
        "won": int(won.sum()),
        "lost": int(lost.sum()),
        "better": listed(gain.argsort(descending=True, stable=True), 1),
        "worse": listed(gain.argsort(stable=True), -1),
    }
