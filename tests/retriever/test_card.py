"""The card of a saved model: what it says is of these weights, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from pictures import save_picture

import itmkit
from itmkit.checks import InputError
from itmkit.data import Vocabulary, WordTokenizer
from itmkit.data.preprocessing import Preprocessing
from itmkit.nn import BagOfWords, TimmGrid
from itmkit.retrieval import EvaluatedOn, write_metrics
from itmkit.retriever import Retriever
from itmkit.retriever.facts import ModelFacts, base_models, without_folders
from itmkit.systems import DAIM

pytestmark = pytest.mark.filterwarnings("ignore:.*are unknown to the")
RECALL = {f"{side}_r{k}": 10.0 * k for side in ("i2t", "t2i") for k in (1, 5, 10)}


@pytest.fixture
def run(pixel_run: Path, tmp_path: Path) -> Path:
    """A run with its validation, and folders of evaluations beside it."""
    folder = Path(shutil.copytree(pixel_run.resolve(), tmp_path / "runs/mine" / pixel_run.name))
    named = f"runs/mine/{folder.name}/checkpoints/best.ckpt"
    bounds = {"intervals": {name: (value - 5, value + 5) for name, value in RECALL.items()}}

    def evaluate(name: str, recall: dict[str, float], about: EvaluatedOn) -> None:
        write_metrics(folder.with_name(name) / "metrics.json", recall, about.split, about)

    later = {name: value / 2 for name, value in RECALL.items()}
    evaluate("1-test", later, EvaluatedOn("test", 8, 40, named, 1))
    evaluate("2-test", RECALL, EvaluatedOn("test", 8, 40, named, 1, None, "coco-1k", **bounds))
    evaluate("3-test", RECALL, EvaluatedOn("test", 8, 40, named, 1, **bounds))
    evaluate("4-test", later, EvaluatedOn("test", 8, 40, named, 2))  # other weights of that name
    other = named.replace("best", "last")
    evaluate("5-test", later, EvaluatedOn("test", 8, 40, other, 1))
    evaluate("6-test", later, EvaluatedOn("test", 8, 40, None, 0))
    return folder


def test_card_of_a_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = itmkit.load(run, device="cpu")
    retriever.save_pretrained(tmp_path / "saved", licence="mit")
    text = (tmp_path / "saved/README.md").read_text()
    about = ModelCard(text).data
    assert (about.license, about.library_name) == ("mit", "itmkit")
    found = {(one.dataset_name, one.metric_type, one.metric_value) for one in about.eval_results}
    for gallery in ("test", "test, protocol coco-1k"):
        name = f"KarpathyDataset, {gallery}: 8 images × 40 captions"
        assert {(name, f"recall_at_{k}", 10.0 * k) for k in (1, 5, 10)} <= found
    assert len(about.eval_results) == 3 * 2 * 3
    assert len(re.findall(r"^### (test|val)", text, re.MULTILINE)) == 3
    assert re.search(r"^  95 % from +5\.0 +45\.0 +95\.0", text, re.MULTILINE)
    assert "* train: 6 images, 30 captions" in text
    assert "annotations: data.json" in text
    assert str(tmp_path.parent) not in text  # nobody else needs to know where the data was
    assert "\n\n\n" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("beach.jpg", "street.jpg"):
        save_picture(tmp_path / name)
    values: dict[str, Any] = {}
    exec(code, values)
    assert values["rows"].shape == (2, 1)
    again = itmkit.load("saved")
    assert again.facts == retriever.facts
    again.save_pretrained(tmp_path / "more")
    assert (tmp_path / "more/README.md").read_text() == re.sub(r"\bsaved\b", "more", text)


def test_card_of_what_is_not_known(tmp_path: Path) -> None:
    words = Vocabulary.build(["a red dog"], min_count=1)
    model = DAIM(TimmGrid("test_resnet", 8, image_size=32), BagOfWords(len(words), 8))
    image = {"class_path": "itmkit.nn.TimmGrid", "init_args": {"model_name": "test_resnet"}}
    image["init_args"] |= {"dim": 8, "image_size": 32}
    text = {"class_path": "itmkit.nn.BagOfWords", "init_args": {"vocab_size": len(words), "dim": 8}}
    encoders = {"image_encoder": image, "text_encoder": text}
    model.model_config = {"class_path": "itmkit.systems.DAIM", "init_args": encoders}
    built = Retriever(model, WordTokenizer(words), Preprocessing(size=32))
    built.save_pretrained(tmp_path / "built")
    text = (tmp_path / "built/README.md").read_text()
    assert "No recall of these weights is known here." in text
    assert "## Training" not in text
    assert text.endswith("## Licence\n\nNot stated.\n")
    assert itmkit.load(tmp_path / "built").facts == ModelFacts()


def test_model_that_was_changed_is_not_saved(run: Path, tmp_path: Path) -> None:
    retriever = itmkit.load(run, device="cpu")
    retriever.preprocessing = Preprocessing(size=32)
    retriever.model.score = lambda images, texts: images.vector @ texts.vector.T * 7  # type: ignore[method-assign]
    retriever.model.rerank_top_k = 0
    with pytest.raises(InputError, match=r"the saved model gives the scores .*; expected those of"):
        retriever.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_licence_and_broken_facts(run: Path, tmp_path: Path) -> None:
    retriever = itmkit.load(run, device="cpu")
    for licence in ("MIT", "", "a licence", 3):
        with pytest.raises(InputError, match=r"licence is .*; expected an identifier such as"):
            retriever.save_pretrained(tmp_path / "saved", licence=licence)  # type: ignore[arg-type]
    retriever.save_pretrained(tmp_path / "saved", licence="cc-by-4.0")
    for content in ([1], {"other": 1}):
        (tmp_path / "saved/facts.json").write_text(json.dumps(content))
        with pytest.raises(
            InputError, match=r"facts\.json holds .*; expected the facts of a model"
        ):
            itmkit.load(tmp_path / "saved")
    (tmp_path / "saved/facts.json").unlink()
    assert itmkit.load(tmp_path / "saved").facts == ModelFacts()


def test_runs_without_records(run: Path) -> None:
    (run / "environment.yaml").unlink()
    for path in run.parent.glob("*/metrics.json"):
        path.unlink()
    facts = itmkit.load(run).facts
    assert (facts.command, facts.evaluations, facts.splits) == (None, [], {})
    assert facts.step == 1


def test_broken_records_do_not_stop_a_run_from_being_loaded(run: Path) -> None:
    (run / "environment.yaml").write_text("a: [b")
    run.with_name("3-test").joinpath("metrics.json").write_text('{"about": {"test"')
    run.with_name("2-test").joinpath("metrics.json").write_text("[1]")
    with pytest.warns(UserWarning, match="cannot be read, so no card has it") as told:
        facts = itmkit.load(run).facts
    assert sum("no card has it" in str(one.message) for one in told) == 3
    assert facts.command is None
    splits = [(one["about"]["split"], one["about"]["protocol"]) for one in facts.evaluations]
    assert splits == [("val", None), ("test", None)]


def test_what_a_model_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/model").mkdir(parents=True)
    sections = """
    - {name_or_path: google/siglip}
    - {name_or_path: here/model}
    - {name_or_path: /tmp/model}
    - {name_or_path: null, config: bert-base-uncased}
    - {model_name: "hf-hub:me/vit", pretrained: true}
    - {model_name: "hf-hub:me/other", pretrained: false}
    - {model_name: "local-dir:me/vit2", pretrained: true}
    - {inner: [{init_args: {model_name: resnet18.a1_in1k, pretrained: true}}]}
    """
    found = base_models(yaml.safe_load(sections), None)
    assert found == ["google/siglip", "me/vit", "timm/resnet18.a1_in1k"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("itmkit fit --config /a/b.yaml --x=/a/c", "itmkit fit --config b.yaml --x=c"),
        ("runs/mine ./a ../b", "runs/mine ./a ../b"),
        ("'~/my photos' ~me/x", "'my photos' x"),
        ("--data={a: /b/c, d: [/e/f]}", "--data={a: c, d: [f]}"),
        ("https://a.b/c s3://a/b", "https://a.b/c s3://a/b"),
        ({"a": ["/b/c", 1, None]}, {"a": ["c", 1, None]}),
    ],
)
def test_folders_of_a_machine_are_not_published(given: Any, shown: Any) -> None:
    assert without_folders(given) == shown
