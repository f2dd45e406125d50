"""``python -m benchmarks.peers FEATURES --captions FILE``: trains the peers, prints a table."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.peers.systems import CCA, SCAN, PooledHeads, VSEInfinity
from benchmarks.report import mean_and_range
from itmkit.data import ImageTextData, KarpathyDataset
from itmkit.losses import InfoNCELoss, TripletLoss
from itmkit.nn import HubnessCorrection
from itmkit.retrieval import Encoding, Gallery, encode, evaluate
from itmkit.systems import Matcher, WarmupCosine
from itmkit.systems.hubness_bank import fill_bank

Build = Callable[..., Matcher]
BATCH_SIZES = {"pooled heads + InfoNCE": 1024, "VSE++": 1024, "VSE∞": 256, "SCAN t2i": 128}
COLUMNS = (("i2t_r1", 13), ("t2i_r1", 13), ("rsum", 14), ("corrected", 14))


def peers() -> dict[str, Build]:
    """The peers that are trained by steps, each with its loss."""
    return {
        "pooled heads + InfoNCE": partial(PooledHeads, InfoNCELoss(0.05)),
        "VSE++": partial(PooledHeads, TripletLoss(), warmup=30),
        "VSE∞": partial(VSEInfinity, TripletLoss(), warmup=30),
        "SCAN t2i": partial(SCAN, TripletLoss(), warmup=30, dim=256),
    }


def main() -> None:
    """Train every peer for the same number of steps and print its recall."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("features", type=Path, help="folder that `itmkit extract` wrote")
    parser.add_argument("--captions", type=Path, required=True, help="Karpathy's dataset_*.json")
    parser.add_argument("--steps", type=int, default=150, help="of every peer but CCA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", default="val", help="to measure recall on")
    parser.add_argument("--only", nargs="*", help="names of peers; all by default")
    arguments = parser.parse_args()
    print(
        f"{'':24}{'i2t R@1':>13}{'t2i R@1':>13}{'rSum':>14}{'corrected':>14}"
        f"{'minutes':>9}{'steps':>7}{'batch':>7}"
    )
    for name in arguments.only or ["CCA", *peers()]:
        seeds = arguments.seeds[:1] if name == "CCA" else arguments.seeds  # CCA draws nothing
        found = [measured(name, seed, arguments) for seed in seeds]
        cells = "".join(
            f"{mean_and_range([one[key] for one in found if key in one]):>{width}}"
            for key, width in COLUMNS
        )
        steps, batch = ("", "") if name == "CCA" else (arguments.steps, BATCH_SIZES[name])
        minutes = statistics.mean(one["minutes"] for one in found)
        print(f"{name:24}{cells}{minutes:9.1f}{steps:>7}{batch:>7}", flush=True)


def measured(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Recall of a peer with a seed, and the minutes of its training."""
    folder, captions = arguments.features, arguments.captions
    data = ImageTextData(
        partial(KarpathyDataset, annotations=captions, features=folder),
        text_features=folder,
        batch_size=BATCH_SIZES.get(name, 1),
        val_split=arguments.split,
        seed=seed,
    )
    seed_everything(seed, verbose=False)
    start = time.monotonic()
    matcher: Matcher
    matcher = fitted_cca(data) if name == "CCA" else trained(peers()[name], data, arguments.steps)
    minutes = (time.monotonic() - start) / 60
    gallery = encode(matcher, data.val_dataloader())
    recall = evaluate(matcher, gallery)
    if "vector" in gallery.images.items():
        recall["corrected"] = evaluate(matcher, corrected(matcher, data, gallery))["rsum"]
    return {"minutes": minutes, **recall}


def corrected(matcher: Matcher, data: ImageTextData, gallery: Gallery) -> Gallery:
    """The same vectors with :class:`HubnessCorrection`, as the systems have it."""
    correction = HubnessCorrection()
    correction.complete(gallery.images.vector.shape[1])
    fill_bank(matcher, correction, data)
    return replace(
        gallery,
        images=Encoding(vector=correction.image(gallery.images.vector)),
        texts=Encoding(vector=correction.text(gallery.texts.vector)),
    )


def fitted_cca(data: ImageTextData) -> CCA:
    """CCA of the training split."""
    data.setup("fit")
    training = ImageTextData(
        data.dataset, text_features=data.text_features, val_split=data.train_split
    )
    cca = CCA()
    cca.fit(training.val_dataloader())
    return cca


def trained(build: Build, data: ImageTextData, steps: int) -> Matcher:
    """A peer after so many steps."""
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    matcher = build(
        image_dim=batch.images.features.shape[-1],
        text_dim=batch.texts.inputs.shape[-1],
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-2),
        lr_scheduler=partial(WarmupCosine, warmup_steps=0.1),
        lr_scheduler_interval="step",
        warmup_unit="step",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_steps=steps,
            gradient_clip_val=2.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(matcher, data)
    return matcher


if __name__ == "__main__":
    main()
