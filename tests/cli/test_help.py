"""Help: what fits on two screens, and what answers at once."""

from __future__ import annotations

import pytest
from tiny_cli import refused

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.cli.help import class_help
from itmkit.cli.options import OPTIONS, SECTIONS
from itmkit.configs import config_names, load_config
from itmkit.configs.agreement import completed
from itmkit.configs.short_options import SHORT_OPTIONS

pytestmark = pytest.mark.usefixtures("tiny_folder")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, command, "--help")
    lines = text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    starts = {line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")}
    assert {*OPTIONS, *SHORT_OPTIONS, *(f"{name}.ARGUMENT" for name in SECTIONS)} < starts
    assert not [name for name in config_names() if name not in text]


def test_usage_says_what_a_command_needs(capsys: pytest.CaptureFixture[str]) -> None:
    def usage(command: str) -> str:
        return printed(capsys, command, "--help").partition("\n\n")[0]

    assert usage("fit") == "usage: itmkit fit --config NAME_OR_PATH [options]"
    assert usage("doctor") == "usage: itmkit doctor [--config NAME_OR_PATH [options]]"
    assert usage("predict") == "usage: itmkit predict --ckpt_path RUN [options]"
    for command in ("validate", "test"):
        first, second = usage(command).splitlines()
        assert first == f"usage: itmkit {command} --ckpt_path RUN [options]"
        assert second.split()[1:3] == [command, "--ensemble"]


def test_types_are_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "folder of the pictures. (required, type: Path)" in text
    assert "<class" not in text


@pytest.mark.parametrize("words", ["--ensemble --help", "--ensemble a b -h"])
def test_help_of_an_ensemble(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["test", *words.split()])
    assert left.value.code == 0
    assert "usage: itmkit test --ensemble" in capsys.readouterr().out


def test_help_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fit", "--help_trainer")
    for option in ("--trainer.max_epochs", "--checkpoint.monitor", "--last.every_n_train_steps"):
        assert option in text


def test_help_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    config = ("--config", "mate/shapes")
    assert "--model.triplet_weight" in printed(capsys, "fit", *config, "--model.help")
    assert "--model.warmup" in printed(capsys, "fit", "--model.help")
    text = printed(capsys, "fit", "--data.help")
    assert "--data.caption_views" in text
    assert ":attr:" not in text
    assert "See skipped." in text
    text = printed(capsys, "fit", "--model.image_encoder.help", "TimmGrid")
    assert "--model.image_encoder.out_index" in text
    assert "known subclasses" not in text
    text = printed(capsys, "fit", *config, "--model.image_encoder.projection.help")
    assert "--model.image_encoder.projection.hidden_dim" in text


def test_help_of_no_class(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--model.image_encoder.help", "itmkit.nn.TimGrid")
    assert line.endswith("expected one that can be imported. Did you mean 'TimmGrid'?")
    with pytest.raises(InputError, match=r"expected --model\.fusion\.help CLASS, or a --config"):
        class_help("model.fusion", None, {})


def test_list_of_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "configs")
    starts = [line.split()[0] for line in text.splitlines()]
    assert [start for start in starts if start != "measured:"] == config_names()
    assert "measured: rSum 534.0 on 1,000 unseen scenes" in text


def test_a_printed_configuration_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "configs", "show", "mate/karpathy")
    with open("own.yaml", "w") as file:
        file.write(text)
    assert load_config("own.yaml") == completed(load_config("mate/karpathy"))
    assert text.startswith("# MATE on captioned photos")


@pytest.mark.parametrize("words", ["shwo mate/shapes", "show"])
def test_wrong_words_behind_configs(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected nothing, or show NAME" in refused(capsys, "configs", *words.split())
