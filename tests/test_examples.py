"""The examples are run."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from clip_models import save_clip
from doc_pages import PAGES, ROOT, blocks
from pictures import COLOURS, save_karpathy, save_picture

import itmkit
from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.retriever import BatchEncoder
from tests.retriever.conftest import photos, pixel_run  # noqa: F401


def test_own_system_is_trained_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own_system.py", "own_system.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    few = ["--data.dataset.init_args.length", "20", "--data.batch_size", "16"]
    rates = ["--model.lr_factors", "{image_encoder: 0.5}"]  # an argument of Matcher
    main(["fit", "--config", "own_system.yaml", "--trainer.max_steps", "2", *few, *rates])
    (best,) = tmp_path.glob("runs/twotowers-own_system/2*/checkpoints/best.ckpt")
    main(["test", "--ckpt_path", os.fspath(best), *few])


def test_system_of_the_page_is_trained_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the configuration that the page shows."""
    (block,) = (one for one in blocks(PAGES["docs/extend.md"], "python") if "BiasedCosine" in one)
    (tmp_path / "mine.py").write_text(block)
    (configuration,) = blocks(PAGES["docs/extend.md"], "yaml")
    (tmp_path / "mine.yaml").write_text(configuration)
    monkeypatch.chdir(tmp_path)
    few = ["--data.dataset.init_args.length", "20", "--data.batch_size", "16"]
    main(["fit", "--config", "mine.yaml", "--trainer.max_steps", "2", *few])
    assert len(list(tmp_path.glob("runs/biasedcosine-mine/2*/metrics.json"))) == 1


@pytest.mark.parametrize(
    "name", ["hect_in_a_plain_loop", "own_lightning_module", "transformers_trainer", "sweep"]
)
def test_examples_of_other_trainers_are_short(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 60


def test_one_loss_in_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front end alone: its back end needs a minute of C++."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    recall = import_module("hect_in_a_plain_loop").main(steps=60, backend="eager")
    assert recall["i2t_r1"] > 50
    assert recall["t2i_r1"] > 50


QUIET = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}


def test_losses_recall_and_a_teacher_in_a_module_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    own = import_module("own_lightning_module")
    found = own.main(accelerator="cpu", enable_model_summary=False, **QUIET)
    assert found["i2t_r1"] > 50
    assert found["t2i_r1"] > 50


@pytest.mark.extras
def test_loss_in_the_trainer_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = import_module("transformers_trainer")
    save_clip(tmp_path / "model", "clip")
    _, images = save_karpathy(tmp_path)
    paths = [str(tmp_path / name) for name in ("model", "data.json", "images", "tuned")]
    common = {"per_device_train_batch_size": 10, "use_cpu": True, "report_to": "none"}
    common |= {"disable_tqdm": True, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    first = example.main(*paths, max_steps=1, **common)
    last = example.main(paths[3], *paths[1:], num_train_epochs=4, **common)
    assert last < first
    scores = itmkit.load(tmp_path / "tuned").scores([images / "0.jpg"], ["a red dog", "cat"])
    assert scores.isfinite().all()


@pytest.mark.extras
def test_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = pytest.importorskip("optuna")
    from tiny_runs import write_config

    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    sweep = import_module("sweep")
    config = str(write_config(tmp_path, "DAIM", train=3, max_epochs=2))
    sweep.main(config, "1")
    study = sweep.main(config, "1")  # the same study goes on
    assert [one.state.name for one in study.trials] == ["COMPLETE"] * 2
    lines = capsys.readouterr().out
    assert f"best: {study.best_value:.1f} in runs/sweep-00{study.best_trial.number}" in lines
    rates = {
        yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        for path in tmp_path.glob("runs/sweep-*/2*/config.yaml")
    }
    assert rates == {one.params["lr"] for one in study.trials}

    create, worst = optuna.create_study, optuna.pruners.ThresholdPruner(lower=1000)
    monkeypatch.setattr(optuna, "create_study", lambda **kw: create(pruner=worst, **kw))
    pruned = sweep.main(config, "1").trials[-1]
    assert pruned.state.name == "PRUNED"
    assert len(pruned.intermediate_values) == 1  # after the first epoch of two
    failed = sweep.main(config, "1", "--model.no_such=1").trials[-1]
    assert failed.state.name == "FAIL"
    assert [path.name for path in tmp_path.glob("runs/*-003")] == []


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:tokenizer.max_length is 64")
@pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
def test_lora_trains_its_matrices_alone_and_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    import torch
    from transformers import AutoModel

    monkeypatch.syspath_prepend(ROOT / "examples")
    lora = import_module("lora")
    save_clip(tmp_path / "model")
    _, images = save_karpathy(tmp_path)
    paths = [tmp_path / name for name in ("model", "data.json", "images", "tuned")]
    lora.main(*map(str, paths), batch_size=8, accelerator="cpu", max_steps=2, **QUIET)
    before = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    after = AutoModel.from_pretrained(tmp_path / "tuned").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"text_model", "vision_model"}
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    scores = itmkit.load(tmp_path / "tuned").scores([images / "0.jpg"], ["a red dog", "cat"])
    assert scores.isfinite().all()


@pytest.mark.long
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
def test_pictures_encoded_with_ray_are_searched_in_lancedb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("lancedb")
    monkeypatch.syspath_prepend(ROOT / "examples")
    save_clip(tmp_path / "model")
    names = [f"{row % 2}/{row}.jpg" for row in range(12)]
    for row, name in enumerate(names):
        save_picture(tmp_path / "photos" / name, list(COLOURS)[row % 4], shade=row)
    (tmp_path / "photos/cut.jpg").write_bytes(b"no picture")
    years = "".join(f"{name},{2010 + row}\n" for row, name in enumerate(names))
    (tmp_path / "years.csv").write_text("file_name,year\n" + years)
    folders = {name: str(tmp_path / name) for name in ("model", "photos", "vectors", "database")}
    encode = [folders["photos"], "--model", folders["model"], "--output", folders["vectors"]]
    encode += ["--table", str(tmp_path / "years.csv"), "--batch_size", "5"]

    with_ray = import_module("encode_with_ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with_ray.main(encode)
    finally:
        ray.shutdown()
    first, *skipped = capsys.readouterr().out.splitlines()
    assert first == f"12 pictures, 16 numbers each, in {folders['vectors']}"
    assert len(skipped) == 1
    assert skipped[0].startswith("skipped: cut.jpg is not a readable image")
    with pytest.raises(InputError, match="holds files; expected a new folder"):
        with_ray.main(encode)

    query = [folders["database"], "a red dog", "--model", folders["model"], "--k", "3"]
    where = ["--where", "year > 2014", "--vectors", folders["vectors"]]
    in_lancedb = import_module("search_in_lancedb")
    hits = in_lancedb.main(query + where)
    retriever = itmkit.load(folders["model"], device="cpu")
    later = names[5:]
    scores, rows = retriever.rank([tmp_path / "photos" / n for n in later], ["a red dog"], 3)
    assert [path for path, _ in hits] == [later[row] for row in rows[0]]
    assert [score for _, score in hits] == pytest.approx(scores[0].tolist(), abs=1e-5)
    out = capsys.readouterr().out
    assert "12 pictures of" in out
    assert "7 candidates of 12 pictures, where: year > 2014" in out
    assert len(in_lancedb.main([*query, "--where", "year = 2012"])) == 1  # filled before
    assert in_lancedb.main([*query, "--where", "year > 2050"]) == []


@pytest.mark.extras
def test_second_stage_orders_what_lancedb_finds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,  # noqa: F811
    pixel_run: Path,  # noqa: F811
) -> None:
    pytest.importorskip("lancedb")
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.syspath_prepend(ROOT / "examples")
    names = sorted(path.name for path in (photos / "images").iterdir())
    found = BatchEncoder(pixel_run, photos / "images")(pa.table({"path": names}))
    (tmp_path / "vectors").mkdir()
    pq.write_table(found, tmp_path / "vectors/0.parquet")
    in_lancedb = import_module("search_in_lancedb")
    query = [str(tmp_path / "database"), "a red beside a dog", "--model", str(pixel_run)]
    query += ["--vectors", str(tmp_path / "vectors")]
    with pytest.raises(InputError, match="photos is None"):
        in_lancedb.main(query)
    hits = in_lancedb.main([*query, "--photos", str(photos / "images")])
    retriever = itmkit.load(pixel_run)
    assert retriever.model.rerank_top_k > 0
    pictures = [photos / "images" / name for name in names]
    scores, rows = retriever.rank(pictures, ["a red beside a dog"])
    assert [path for path, _ in hits] == [names[row] for row in rows[0]]
    assert [score for _, score in hits] == pytest.approx(scores[0].tolist(), abs=1e-5)

    save_clip(tmp_path / "other")
    query[3] = str(tmp_path / "other")
    with pytest.raises(InputError, match="database is of another model"):
        in_lancedb.main(query)
