"""Recall of a system on a split, with what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from itmkit.checks import InputError, check_count
from itmkit.data import ImageTextData, ImageTextDataset
from itmkit.evaluation import probe_scenes, write_queries, write_trec
from itmkit.evaluation.judgement_files import check_protocol
from itmkit.evaluation.probes import probes_line
from itmkit.evaluation.query_file import FILE_NAME
from itmkit.metrics.protocol import find_protocol, protocol_name
from itmkit.metrics.query_ranks import QueryRanks
from itmkit.retrieval import (
    EvaluatedOn,
    Protocol,
    encode,
    evaluation_rows,
    recall_table,
    write_metrics,
)
from itmkit.systems import Matcher
from itmkit.systems.evaluation import Evaluation

STAGES: dict[str, Literal["val", "test"]] = {"validate": "val", "test": "test"}


class Measured(NamedTuple):
    """Recall, and what it was measured on.

    Args:
        recall: names without their stage, such as ``i2t_r1`` and ``rsum``; per cent and ranks.
        on: split, gallery, checkpoint, step.
        folds: the ranks of all queries, fold by fold.
    """

    recall: dict[str, float]
    on: EvaluatedOn
    folds: list[QueryRanks]


def write_ranks(
    folder: Path, measured: Measured, split: ImageTextDataset, *, keep: int, trec: bool = False
) -> None:
    """Write the rank and the best items of every query into a folder.

    Args:
        folder: that gets ``queries.parquet``, and with ``trec`` the folder of that name.
        measured: with so many items of each query.
        split: it was measured on.
        keep: how many items a query has; 0: nothing is written.
        trec: whether to write runs and relevance judgements too.
    """
    if keep:
        write_queries(
            folder / FILE_NAME,
            measured.folds,
            split.names,
            split.captions,
            caption_images=split.caption_images,
            keep=keep,
            about=asdict(measured.on),
        )
    if trec:
        write_trec(folder / "trec", measured.folds)


def check_keep(keep: int, trec: bool) -> None:
    """Raise for runs and judgements of queries of which nothing is kept."""
    check_count(0, keep=keep)
    if trec and not keep:
        raise InputError("keep is 0 with trec; expected how many items a query has")


def report(rows: Mapping[str, Measured], folder: Path | None, title: str | None = None) -> None:
    """Print a table of recall, and write the last row of it to ``metrics.json``.

    Args:
        rows: by name, at least one.
        folder: of the file; None to write none.
        title: of the table; None: what the last row was measured on.
    """
    *_, (recall, about, _) = rows.values()
    lines: dict[str, dict[str, float]] = {}
    for name, one in rows.items():
        lines |= evaluation_rows(name, one.recall, one.on)
    print(f"\n{title or about}\n\n{recall_table(lines)}")
    if about.probes is not None:
        print(f"\n{probes_line(about.probes)}")
    if folder is not None:
        write_metrics(folder / "metrics.json", recall, about.split, about)
        print(f"\nrun folder: {folder}")


def measure(
    trainer: Trainer,
    model: Matcher,
    data: ImageTextData,
    command: Literal["validate", "test"] = "test",
    *,
    ckpt_path: str | None = None,
    folder: Path | None = None,
    protocol: Protocol | str | int | None = None,
    protocol_files: Sequence[str | Path] | str | Path | None = None,
    keep: int = 0,
) -> Measured:
    """Evaluate a system as a Trainer does.

    Args:
        trainer: any; its loggers get the recall.
        model: to evaluate.
        data: with the split.
        command: which of the Trainer's methods, and so of the splits.
        ckpt_path: checkpoint to load for that; None: the weights as they are.
        folder: a checkpoint in this folder is named from there.
        protocol: which images and captions are searched together; see
            :func:`itmkit.retrieval.rank_queries`.
        protocol_files: of a protocol with judgements; see
            :func:`itmkit.evaluation.read_judgements`.
        keep: how many of the best items of each query are kept beside its rank.

    Raises:
        InputError: the split does not fit the protocol; nothing was encoded.
        SIGTERMException: where the process received SIGTERM during the evaluation.
    """
    judgements = None
    name = data.test_split if command == "test" else data.val_split
    if protocol is not None:
        data.trainer = trainer  # knows the number of processes
        data.setup(command)
        if name is not None:
            judgements = check_protocol(protocol, data.split(name), protocol_files)
            if find_protocol(protocol).probes:
                _check_probes(trainer, data)
    evaluation = model.evaluation = Evaluation(protocol, judgements, keep)
    try:
        results: list[Mapping[str, float]] = getattr(trainer, command)(
            model, datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True
        )
    finally:
        model.evaluation = Evaluation()
    if trainer.received_sigterm:
        raise SIGTERMException  # Lightning only notes it while it evaluates
    stage, named, step = STAGES[command], ckpt_path, trainer.global_step
    if ckpt_path is not None:
        content = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
        step, path = content.get("global_step", 0), Path(ckpt_path).resolve()
        if folder is not None and path.is_relative_to(folder.resolve()):
            named = path.relative_to(folder.resolve()).as_posix()
    counts, loaders = (
        (trainer.num_test_batches, trainer.test_dataloaders)
        if command == "test"
        else (trainer.num_val_batches, trainer.val_dataloaders)
    )
    batches, whole = int(sum(counts)), len(loaders or ())
    logged = {key: value for result in results for key, value in result.items()}
    probes = None
    if name is not None and find_protocol(protocol).probes:
        loader = data.evaluation_dataloader(name)
        found = probe_scenes(model, encode(model, loader), data.split(name), data.tokenizer)
        probes = {kind: one._asdict() for kind, one in found.items()}
        logged |= {f"{stage}/probe_{kind}": one.accuracy for kind, one in found.items()}
    folds = evaluation.query_ranks
    on = EvaluatedOn(
        stage,
        *evaluation.gallery_size,
        named,
        step,
        batches=(batches, whole) if batches < whole else None,
        protocol=protocol_name(protocol),
        queries=None if judgements is None else count_queries(folds),
        probes=probes,
    )
    prefix = f"{stage}/"
    recall = {n.removeprefix(prefix): v for n, v in logged.items() if n.startswith(prefix)}
    return Measured(recall, on, folds)


def count_queries(folds: Sequence[QueryRanks]) -> tuple[int, int]:
    """How many images and captions are queries."""
    return sum(len(fold.i2t) for fold in folds), sum(len(fold.t2i) for fold in folds)


def _check_probes(trainer: Trainer, data: ImageTextData) -> None:
    """Raise if other sentences than those of the split cannot be read, or not in fp32."""
    if data.text_features is not None:
        raise InputError(
            "text_features is given with the protocol 'probes', whose sentences are not stored; "
            "expected a model that reads words"
        )
    if str(trainer.precision) in ("bf16-true", "16-true"):
        raise InputError(
            f"trainer.precision is {trainer.precision!r} with the protocol 'probes', which are "
            "measured in fp32; expected 32-true or a mixed precision"
        )
