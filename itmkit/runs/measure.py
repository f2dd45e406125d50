"""Recall of a system on a split, with what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.evaluation import probe_scenes
from itmkit.evaluation.judgement_files import check_protocol
from itmkit.metrics.protocol import find_protocol, protocol_name
from itmkit.metrics.query_ranks import QueryRanks
from itmkit.retrieval import EvaluatedOn, Protocol, encode
from itmkit.systems import Matcher
from itmkit.systems.evaluation import Evaluation

STAGES = {"validate": "val", "test": "test"}


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
    testing = command == "test"
    batches = int(sum(trainer.num_test_batches if testing else trainer.num_val_batches))
    whole = len((trainer.test_dataloaders if testing else trainer.val_dataloaders) or ())
    if ckpt_path is not None:
        content = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
        step, path = content.get("global_step", 0), Path(ckpt_path).resolve()
        if folder is not None and path.is_relative_to(folder.resolve()):
            named = path.relative_to(folder.resolve()).as_posix()
    images, captions = evaluation.gallery_size
    part = (batches, whole) if batches < whole else None
    logged = {key: value for result in results for key, value in result.items()}
    probes = None
    if name is not None and find_protocol(protocol).probes:
        loader = data.evaluation_dataloader(name)
        found = probe_scenes(model, encode(model, loader), data.split(name), data.tokenizer)
        probes = {kind: one._asdict() for kind, one in found.items()}
        logged |= {f"{stage}/probe_{kind}": one.accuracy for kind, one in found.items()}
    queries = None
    if judgements is not None:
        sides = [[len(getattr(f, side)) for f in evaluation.query_ranks] for side in ("i2t", "t2i")]
        queries = (sum(sides[0]), sum(sides[1]))
    return Measured(
        {n.removeprefix(f"{stage}/"): v for n, v in logged.items() if n.startswith(f"{stage}/")},
        EvaluatedOn(
            stage,
            images,
            captions,
            named,
            step,
            part,
            protocol_name(protocol),
            queries=queries,
            probes=probes,
        ),
        evaluation.query_ranks,
    )


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
