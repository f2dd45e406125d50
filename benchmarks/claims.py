"""What each part of the systems adds, on the built-in shapes: ``python -m benchmarks.claims``.

Every row is a shipped configuration with a part left out or replaced. Each row and seed is trained,
its best checkpoint (by ``val``) measured on ``test``, and written to the results at once. Started
again, the command goes on with what is missing there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.report import mean_and_range
from itmkit.files import write_text

ROOT = Path(__file__).parents[1]
_CHILD = "import json, sys; from itmkit.cli import main; [main(w) for w in json.loads(sys.argv[1])]"
_KEPT = ("rsum", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
#: options of `itmkit fit`
Options = Mapping[str, Any]


class Row(NamedTuple):
    """One variant of a system.

    Args:
        claim: what it is about.
        name: of the variant.
        config: the configuration that it starts from.
        options: of `itmkit fit`.
        base: the row that it is compared with; None for a row that is compared with none.
        one_seed: whether it is run with the first seed alone.
        partner: options of a second run; the two are measured together.
        cost: about how long it takes, against the other rows; the longest are started first.
    """

    claim: str
    name: str
    config: str
    options: Options = MappingProxyType({})
    base: str | None = None
    one_seed: bool = False
    partner: Options | None = None
    cost: float = 1.0


def _mate(claim: str, name: str, one_seed: bool = False, base: str = "mate", **options: Any) -> Row:
    return Row(claim, name, "mate/shapes", _nested(options), base, one_seed)


def _daim(claim: str, name: str, one_seed: bool = False, **options: Any) -> Row:
    return Row(claim, name, "daim/shapes", _nested(options), "daim", one_seed)


def _tvrn(claim: str, name: str, one_seed: bool = False, base: str = "tvrn", **options: Any) -> Row:
    return Row(claim, name, "tvrn/shapes", _nested(options), base, one_seed, cost=2)


def _nested(options: Options) -> Options:
    """Names of arguments of the model, with ``__`` for each dot; ``model`` is its class."""
    dotted = {name.replace("__", "."): value for name, value in options.items()}
    return {name if name == "model" else f"model.{name}": one for name, one in dotted.items()}


_POOLED, _UNREFINED = "benchmarks.variants.PooledMATE", "benchmarks.variants.UnrefinedTVRN"
_INFO_NCE: dict[str, Any] = {
    "triplet": {"class_path": "itmkit.losses.InfoNCELoss", "init_args": {"temperature": 0.07}},
    "triplet_weight": 1,
    "warmup": 0,
}
ROWS = (
    Row("", "mate", "mate/shapes"),
    _mate("ESA", "mate, mean pooling", model=_POOLED, pooling="mean"),
    _mate("ESA", "mate, generalised pooling", model=_POOLED, pooling="generalised"),
    Row("fusion", "mate, fusion", "mate/shapes_fused", {}, "mate", cost=5),
    Row(
        "fusion",
        "mate, fusion after InfoNCE",
        "mate/shapes_fused",
        _nested(_INFO_NCE | {"distillation_weight": 0}),
        "mate, InfoNCE in place of triplet and distillation",
        one_seed=True,
        cost=5,
    ),
    _mate("HECT", "mate, no HECT", hect_weight=0),
    _mate("HECT", "mate, HECT in place of triplet", triplet_weight=0, hect_weight=0.256),
    _mate(
        "HECT",
        "mate, triplet alone",
        base="mate, no distillation",
        triplet_weight=1,
        hect_weight=0,
        distillation_weight=0,
    ),
    _mate(
        "HECT",
        "mate, HECT alone",
        base="mate, triplet alone",
        triplet_weight=0,
        hect_weight=1,
        distillation_weight=0,
    ),
    _mate("distillation", "mate, no distillation", distillation_weight=0),
    _mate("distillation", "mate, no soft targets", distillation__alpha=0),
    _mate("distillation", "mate, InfoNCE in place of triplet", **_INFO_NCE),
    _mate(  # the softmax over a batch that the distillation brings, without the teacher
        "distillation",
        "mate, InfoNCE in place of triplet and distillation",
        **_INFO_NCE,
        distillation_weight=0,
    ),
    Row("", "daim", "daim/shapes"),
    _daim(
        "discriminability",
        "daim, no discriminability",
        image_encoder__level_discriminability=None,
    ),
    _daim(
        "adaptive margin",
        "daim, fixed margin",
        loss="itmkit.losses.TripletLoss",
        loss__reduction="sum",
    ),
    _daim(
        "adaptive margin",
        "daim, InfoNCE in place of adaptive margin",
        loss={"class_path": "itmkit.losses.InfoNCELoss", "init_args": {"temperature": 0.07}},
    ),
    Row("", "tvrn", "tvrn/shapes", cost=2),
    _tvrn("text refinement", "tvrn, words as they are", model=_UNREFINED, text_refinement=False),
    _tvrn(
        "visual refinement", "tvrn, regions as they are", model=_UNREFINED, visual_refinement=False
    ),
    # one seed
    _mate("teacher queue", "mate, queue of 1,024", True, queue_size=1024),
    _mate(
        "kind of distillation",
        "mate, distillation of features",
        True,
        distillation__similarity_weight=0,
        distillation__feature_weight=1,
    ),
    _mate("group size", "mate, 1 view", True, views=1),
    _mate("group size", "mate, 4 views", True, views=4),
    _daim("levels", "daim, 2 levels", True, image_encoder__out_indices=[2, 3]),
    _daim("levels", "daim, 3 levels", True, image_encoder__out_indices=[1, 2, 3]),
    Row(
        "relations",
        "tvrn, overlapping things",
        "tvrn/shapes",
        {"data.dataset.overlapping": True},
        one_seed=True,
        cost=2,
    ),
    Row(
        "relations",
        "tvrn, overlapping things, no relations",
        "tvrn/shapes",
        {"data.dataset.overlapping": True, "data.relation_threshold": 1.0},  # to itself alone
        "tvrn, overlapping things",
        one_seed=True,
        cost=2,
    ),
    _tvrn("reasoning", "tvrn, SAF", True, reasoning="saf"),
    Row(
        "reasoning",
        "tvrn, SGR and SAF",
        "tvrn/shapes",
        {},
        "tvrn",
        one_seed=True,
        partner={"model.reasoning": "saf"},
        cost=4,
    ),
    _tvrn("focal", "tvrn, focal equal", True, focal="equal"),
    _tvrn("focal", "tvrn, focal prob", True, focal="prob"),
    _tvrn("focal", "tvrn, focal global", True, focal="global"),
)


class Settings(NamedTuple):
    """What all runs share.

    Args:
        accelerator: of the Trainer.
        steps: that every run takes, on few scenes, to see that it starts; None: as configured.
    """

    accelerator: str
    steps: int | None


def words_of_fit(row: Row, seed: int, settings: Settings, extra: Options, name: str) -> list[str]:
    """The words of `itmkit fit` for a row."""
    options: dict[str, Any] = {
        "config": row.config,
        "name": name,
        "seed_everything": seed,
        "data.seed": seed,
        "untrained": False,
        "trainer.accelerator": settings.accelerator,
        "trainer.devices": 1,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
    }
    if settings.accelerator != "cpu" and row.config.startswith("tvrn"):
        options["model.chunk_pairs"] = 2048  # faster, in a share of the memory; the same results
    if settings.steps is not None:
        options["trainer.max_steps"] = settings.steps
        options["data.dataset.length"] = {"train": 128, "val": 40, "test": 40}  # a step an epoch
        if row.config == "mate/shapes_fused":
            first = max(1, settings.steps // 2)
            options |= {"model.fusion_start": first, "model.lr_scheduler.restarts": [first]}
    return ["fit", *_words(options | {**row.options, **extra})]


def _words(options: Options) -> list[str]:
    values = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in options.items()
    }
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def commands_of(row: Row, seed: int, settings: Settings) -> list[list[str]]:
    """The words of the commands that measure a row; results are in `test` and `first-stage`."""

    def test(run: str, name: str, options: Options) -> list[str]:
        checkpoint = f"runs/{run}/latest/checkpoints/best.ckpt"
        named = {"ckpt_path": checkpoint, "name": name, "keep": 0}
        return ["test", *_words(named | dict(options))]

    commands = [words_of_fit(row, seed, settings, {}, "first")]
    if row.partner is not None:
        commands.append(words_of_fit(row, seed, settings, row.partner, "second"))
        runs = ["runs/first/latest", "runs/second/latest"]
        device = "cpu" if settings.accelerator == "cpu" else "cuda"
        return [*commands, ["test", "--ensemble", *runs, "--name", "test", "--device", device]]
    commands.append(test("first", "test", {}))
    if row.config == "mate/shapes_fused":
        alone = {"model.rerank_top_k": 0, "model.rerank_weight": 0.5}
        commands.append(test("first", "first-stage", alone))
    return commands


class Processes:
    """Processes that end with this one."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: Sequence[str], *, log: Path, cwd: Path) -> int:
        """Run a command to its end and return its status."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        environment |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # many on one GPU
        environment |= {"ITMKIT_REPORT": "false"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            self.running.add(process)
            if self.stopped:
                process.kill()
            status = process.wait()
            self.running.discard(process)
            return status

    def stop(self) -> None:
        """End all of them."""
        self.stopped = True
        for process in list(self.running):
            process.kill()


def measured(row: Row, seed: int, settings: Settings, processes: Processes) -> dict[str, Any]:
    """Recall of a row on `test`, minutes, and the words that a user would type."""
    commands = commands_of(row, seed, settings)
    record: dict[str, Any] = {
        "row": row.name,
        "seed": seed,
        "steps": settings.steps,
        "accelerator": settings.accelerator,
        "commands": [shlex.join(["itmkit", *words]) for words in commands],
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        start = time.monotonic()
        command = [sys.executable, "-c", _CHILD, json.dumps(commands)]
        status = processes.run(command, log=log, cwd=Path(folder))
        record["minutes"] = round((time.monotonic() - start) / 60, 2)
        try:
            if status != 0:
                raise RuntimeError(f"exit status {status}")
            for name in ("test", "first-stage"):
                for path in sorted(Path(folder).glob(f"runs/{name}/2*/metrics.json")):
                    found = json.loads(path.read_text(encoding="utf-8"))
                    record[name] = {key: found[f"test/{key}"] for key in _KEPT}
            if "test" not in record:
                raise RuntimeError("no metrics.json was written")
        except (OSError, KeyError, RuntimeError) as error:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            record["error"] = f"{error!r}\n{tail}"
    return record


@contextmanager
def _ended(processes: Processes, pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        yield
    finally:
        processes.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: mean ± half of the range over the seeds."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    minutes: dict[str, list[float]] = {}
    for record in records:
        if "test" in record:
            found.setdefault(record["row"], {})[record["seed"]] = record["test"]
            minutes.setdefault(record["row"], []).append(record["minutes"])
            if "first-stage" in record:
                name = _first_stage(record["row"])
                found.setdefault(name, {})[record["seed"]] = record["first-stage"]
    rows = {row.name: row for row in ROWS}
    lines = [
        "| claim | row | seeds | i2t R@1 | t2i R@1 | rSum | against | difference | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        first = _first_stage(name)
        for shown, base in ((first, row.base), (name, first if first in found else row.base)):
            if shown not in found:
                continue
            seeds = found[shown]
            columns = (
                mean_and_range([seeds[seed][key] for seed in seeds])
                for key in ("i2t_r1", "t2i_r1", "rsum")
            )
            shared = [seed for seed in seeds if seed in found.get(base or "", {})]
            gain = mean_and_range(
                [seeds[seed]["rsum"] - found[base][seed]["rsum"] for seed in shared if base],
                signed=True,
            )
            taken = f"{statistics.mean(minutes[shown]):.1f}" if shown in minutes else ""
            cells = (row.claim, shown, len(seeds), *columns, base or "", gain, taken)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _first_stage(name: str) -> str:
    return f"{name}: its global branch"


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return records


def main(argv: list[str] | None = None) -> int:
    """Run what is missing in the results; the exit status is 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--accelerator", default="cpu", help="of the Trainer: cpu, gpu, …")
    add("--output", type=Path, default=Path("claims.json"), help="a table goes beside it")
    add("--only", nargs="+", metavar="ROW", help="names of rows; all by default")
    add("--steps", type=int, help="of every run, on few scenes: a check that all rows start")
    add("--minutes", type=float, help="start no run after these, and stop those that are left")
    add("--list", action="store_true", help="print the names of the rows and leave")
    arguments = parser.parse_args(argv)
    known = [row.name for row in ROWS]
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"--only: expected one of {'; '.join(known)}; got {name!r}")
    if arguments.list:
        print("\n".join(known))
        return 0
    settings = Settings(arguments.accelerator, arguments.steps)
    records = _read(arguments.output)
    done = {(one["row"], one["seed"]) for one in records if one["steps"] == settings.steps}
    chosen = [row for row in ROWS if row.name in (arguments.only or known)]
    missing = [
        (row, seed)
        for number, seed in enumerate(arguments.seeds)
        for row in sorted(chosen, key=lambda row: -row.cost)
        if not (row.one_seed and number) and (row.name, seed) not in done
    ]
    failed = 0
    processes, start = Processes(), time.monotonic()
    left = None if arguments.minutes is None else 60 * arguments.minutes
    pool = ThreadPoolExecutor(arguments.jobs)
    with _ended(processes, pool):
        futures = [pool.submit(measured, row, seed, settings, processes) for row, seed in missing]
        try:
            for number, future in enumerate(as_completed(futures, timeout=left), 1):
                record = future.result()
                told = f"[{number}/{len(missing)}, {time.monotonic() - start:.0f} s] "
                told += f"{record['row']}, seed {record['seed']}: "
                if "error" in record:
                    failed += 1
                    print(f"{told}failed: {record['error']}", file=sys.stderr, flush=True)
                    continue
                records.append(record)
                write_text(arguments.output, json.dumps(records, indent=1) + "\n")
                write_text(arguments.output.with_suffix(".md"), table(records) + "\n")
                print(
                    f"{told}rSum {record['test']['rsum']:.1f}, {record['minutes']} minutes",
                    flush=True,
                )
        except TimeoutError:
            print(f"stopped after {arguments.minutes} minutes", file=sys.stderr)
    print(table(records))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
