"""Recall of several runs together, as ``itmkit test --ensemble`` and ``validate`` measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from itmkit.checks import InputError, check_choice
from itmkit.data import ImageTextDataset
from itmkit.evaluation.judgement_files import check_protocol
from itmkit.evaluation.query_file import ENSEMBLE_FILE
from itmkit.files import check_different, path_inside, user_path, write_text
from itmkit.metrics import Protocol, bootstrap_recall
from itmkit.metrics.protocol import find_protocol, protocol_name
from itmkit.metrics.query_ranks import recall_of_folds
from itmkit.retrieval import EvaluatedOn, encode, rank_queries
from itmkit.retrieval.ensemble import Ensemble
from itmkit.runs.folder import check_name, claim, discarded_on_error
from itmkit.runs.measure import Measured, check_keep, count_queries, report, write_ranks
from itmkit.systems import Matcher, load_run


def evaluate_ensemble(
    runs: Sequence[str | Path],
    *,
    stage: Literal["val", "test"] = "test",
    folder: str | Path = "runs",
    name: str = "ensemble",
    protocol: Protocol | str | int | None = None,
    protocol_files: Sequence[str | Path] | str | Path | None = None,
    keep: int = 10,
    trec: bool = False,
    device: torch.device | str = "cpu",
) -> Path:
    """Measure runs, of one system or several, by the mean of their standardised scores.

    Each run reads its own data; the images and captions have to be the same. Prints a table with
    each run alone and all together, and writes what ``itmkit test`` or ``validate`` writes.

    Args:
        runs: folders of two or more runs.
        stage: which split of theirs they are measured on.
        folder: of all runs.
        name: of the folder inside it that gets the folder of this evaluation.
        protocol: see :func:`itmkit.retrieval.rank_queries`.
        protocol_files: of a protocol with judgements; see
            :func:`itmkit.evaluation.read_judgements`.
        keep: best items and hardest negatives of each query in ``queries.parquet``; 0: no file.
        trec: whether the folder ``trec`` gets runs and relevance judgements too.
        device: where the models go.

    Returns:
        The folder of this evaluation.

    Raises:
        InputError: fewer than two runs, one twice, splits that differ, or one that does not
            fit the protocol.
    """
    if len(runs) < 2:
        raise InputError(f"ensemble has {len(runs)} runs; expected two or more")
    check_different("ensemble", runs, [user_path(run) for run in runs])
    check_choice("stage", stage, ["val", "test"])
    check_keep(keep, trec)
    check_name(name)
    if find_protocol(protocol).probes:
        raise InputError(
            f"protocol is {protocol!r} with an ensemble; expected one without probes, or each run "
            "on its own"
        )
    loaded = [load_run(run) for run in runs]
    split = _same_split(runs, [data.split(data.evaluated_split(stage)) for _, data in loaded])
    judgements = None if protocol is None else check_protocol(protocol, split, protocol_files)
    loaders = [data.evaluation_dataloader(data.evaluated_split(stage)) for _, data in loaded]
    models: list[Matcher] = [model.to(device) for model, _ in loaded]
    galleries = [encode(one, loader) for one, loader in zip(models, loaders, strict=True)]
    ensemble = Ensemble(models, galleries)
    source = getattr(loaders[0].dataset, "relevance", None)
    gallery = ensemble.gallery
    relevance = judgements or (source and source(gallery.image_ids, gallery.text_ids))
    options: dict[str, Any] = {"protocol": protocol, "relevance": relevance}
    names = [path_inside(Path.cwd(), user_path(run).absolute()).as_posix() for run in runs]
    about = EvaluatedOn(
        stage,
        len(gallery.images),
        len(gallery.texts),
        " + ".join(names),
        0,
        protocol=protocol_name(protocol),
    )
    rows = {}
    for run, model, own in zip(names, models, ensemble.galleries, strict=True):
        recall = recall_of_folds(rank_queries(model, own, **options))
        rows[run] = Measured({k: v for k, v in recall.items() if "/" not in k}, about, [])
    folds = rank_queries(ensemble, gallery, keep=keep, **options)
    queries = None if judgements is None else count_queries(folds)
    about = replace(about, intervals=bootstrap_recall(folds), queries=queries)
    measured = Measured(recall_of_folds(folds), about, folds)
    target = claim(Path(folder), name, suffix="-test" if stage == "test" else "-validate")
    with discarded_on_error(target, Path(folder)):
        configured = {"ensemble": names, "protocol": protocol_name(protocol)}
        write_text(target / ENSEMBLE_FILE, yaml.safe_dump(configured, sort_keys=False))
        write_ranks(target, measured, split, keep=keep, trec=trec)
        report(rows | {"ensemble": measured}, target, about.gallery)
    return target


def _same_split(runs: Sequence[str | Path], splits: Sequence[ImageTextDataset]) -> ImageTextDataset:
    """The split, which has to be the same in all runs."""
    first, *others = splits
    for run, other in zip(runs[1:], others, strict=True):
        for what in ("names", "captions"):
            if getattr(first, what) != getattr(other, what):
                raise InputError(
                    f"{run} has other {what} in its split {other.split!r} than {runs[0]}; expected "
                    "the same images and captions, in the same order"
                )
    return first
