"""Mistyped words: what is told, and how soon."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_cli import refused

from itmkit.cli import main
from itmkit.cli.arguments import composed, config_stems
from itmkit.cli.matcher_parser import command_parser
from itmkit.cli.options import OPTIONS, SECTIONS
from itmkit.configs.agreement import PLACES, value_of

pytestmark = pytest.mark.usefixtures("tiny_folder")


def test_one_configuration_goes_first() -> None:
    words = ["fit", "--name=a", "--config", "tiny.yaml", "-c", "mate/shapes", "--print_config"]
    put = composed(words).words
    assert put[1:3] == ["--name=a", "--print_config"]
    config = yaml.safe_load(put[0].removeprefix("--config="))
    assert config["model"]["class_path"] == "itmkit.systems.MATE"
    assert config["trainer"]["max_epochs"] == 2  # of tiny.yaml alone
    assert config_stems(words) == ["tiny", "shapes"]
    assert composed(["fit"]) == ({}, [])


def test_values_that_follow_are_full_options() -> None:
    words = "fit --config mate/karpathy --text_model words --model.views=3 --captions=a.json"
    put = composed(words.split())
    assert set(put.words[1:]) == {
        "--model.views=3",
        "--model.text_encoder.name_or_path=words",
        "--data.dataset.annotations=a.json",
        "--model.text_encoder.dim=256",
        "--data.caption_views=3",
        '--data.tokenizer={"class_path": "itmkit.data.TransformersTokenizer", '
        '"init_args": {"name_or_path": "words"}}',
    }
    assert value_of(put.config, "data.tokenizer.name_or_path") == "words"
    assert value_of(put.config, "model.views") == 3


def test_argument_of_a_class_that_nothing_names_names_it() -> None:
    own = "--data.tokenizer.init_args.name_or_path=words"
    put = composed(["fit", "--config=mate/precomp", own]).words
    assert put[1:3] == ["--data.tokenizer=itmkit.data.TransformersTokenizer", own]
    named = "--data.tokenizer=itmkit.data.WordTokenizer"
    put = composed(["fit", "--config=mate/precomp", named, "--data.tokenizer.max_length=9"]).words
    assert put[1] == named


def test_the_known_options_are_those_of_the_parser() -> None:
    parser = command_parser("fit")
    names = {name.lstrip("-").rstrip("+") for name in parser._option_string_actions} - {"c"}
    alone = {name for name in names if "." not in name} - set(SECTIONS)
    assert alone == {*OPTIONS, "h"} - {"help_trainer"}
    assert {name.partition(".")[0] for name in names if "." in name} == set(SECTIONS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("tset", "configs. Did you mean 'test'?"),
        ("fit --confg tiny.yaml", ". Did you mean '--config'?"),
        (
            "fit --trainr.max_epochs=3 --config tiny.yaml",
            ". Did you mean '--trainer.max_epochs'?",
        ),
        ("test --x 3", "unknown option '--x'; those of sections start with --model, --data,"),
        ("fit mate/shapes", "unexpected 'mate/shapes'. Did you mean '--config mate/shapes'?"),
        ("fit --name=a b", "unexpected 'b'; expected an option"),
        ("fit --config mate/shpes", "Did you mean 'mate/shapes'?"),
        ("extract --modle x", "unknown option --modle x. Did you mean '--model'?"),
    ],
)
def test_error_of_a_word_comes_within_half_a_second_of_processor_time(
    words: str, told: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "itmkit", *words.split()], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert told in line
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer:\n  max_epochs: 3\n bad: [\n", "config 'own.yaml', line 3: "),
        ("trainr:\n  max_epochs: 3\n", "has an unknown key 'trainr'. Did you mean 'trainer'?"),
        ("- 1\n", "config 'own.yaml' holds a list; expected model, data, trainer: …"),
        ("name: \xe9\n", "config 'own.yaml' is not text in UTF-8"),
        ("# nothing\n", "config 'own.yaml' is empty; expected model, data, trainer: …"),
    ],
)
def test_error_in_a_file(text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_bytes(text.encode("latin-1"))
    assert told in refused(capsys, "fit", "--config", "tiny.yaml", "--config=own.yaml")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--trainer.max_epoch 3", "unknown option --trainer.max_epoch=3. Did you mean '--trainer."),
        ("--model.rat 3", "Option 'rat' is not accepted. Did you mean 'rate'?"),
        (
            "--data.dataset itmkit.data.ShapesDataset --data.dataset.init_args.lenght 5",
            "dataset: Option 'lenght' is not accepted. Did you mean 'length'?",
        ),
        (
            "--model itmkit.systems.Matcher",
            "Matcher is abstract; expected a class with encode_image, encode_text, loss, score",
        ),
        ("--model MATEE", "model: 'MATEE' is no class that is known here"),
        ("--model itmkit.systems.MATEE", ". Did you mean 'MATE'?"),
        ("--model itmkit.system.MATE", ". Did you mean 'systems'?"),
        ("--model tiny_matchr.TinyMatcher", "No module named 'tiny_matchr'"),
        (
            "--trainer.callbacks EarlyStoping",
            "trainer.callbacks: Expected a list; 'EarlyStoping' is no class that is known here",
        ),
        ("--trainer.callbacks EarlyStoping", ". Did you mean 'EarlyStopping'?"),
        (
            "--data.dataset BiGRU",
            "'BiGRU' is no class that is known here; expected a class of another",
        ),
        ("--trainer.logger CSVLoger", "Did you mean 'CSVLogger'?"),
        (
            "--trainer.precision 17",
            "trainer.precision: Expected one of 64, 32, 16; Expected one of",
        ),
    ],
)
def test_error_of_a_name(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", "tiny.yaml", *options.split())
    assert told.lower() in line.lower()
    assert "typing." not in line
    assert "Expected a path" not in line
    assert len(line) < 300


def test_error_without_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "fit").endswith(
        "start from a configuration, such as --config mate/shapes"
    )
    line = refused(
        capsys, "fit", "--config", "tiny.yaml", "--data.dataset", "itmkit.data.KarpathyDataset"
    )
    assert line.endswith("required: annotations (of itmkit.data.KarpathyDataset)")
    line = refused(capsys, "extract")
    assert "required: output" in line
    assert "config" not in line


def test_the_name_of_a_class_is_enough_though_nothing_has_imported_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_data.py").write_text(
        "from tiny_matcher import TinyDataset\nclass OwnDataset(TinyDataset):\n    pass\n"
    )
    Path("own_package.py").write_text(
        "__all__ = ['OwnDataset']\n"
        "def __getattr__(name):\n"
        "    if name != 'OwnDataset':\n"
        "        raise AttributeError(name)\n"
        "    from own_data import OwnDataset\n"
        "    return OwnDataset\n"
    )
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr("itmkit.configs.agreement.PLACES", [*PLACES, "own_package"])
    without = Path("tiny.yaml").read_text().replace("    dataset: tiny_matcher.TinyDataset\n", "")
    Path("own.yaml").write_text(without)
    with pytest.raises(SystemExit) as stop:
        main("fit --config own.yaml --data.dataset OwnDataset --print_config".split())
    assert stop.value.code == 0
    assert "class_path: own_data.OwnDataset" in capsys.readouterr().out
