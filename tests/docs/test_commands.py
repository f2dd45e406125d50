"""Every ``itmkit …`` that README, the pages and the configurations show, read by the parsers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, ROOT, commands, configuration_commands

from itmkit.cli import COMMANDS, main
from itmkit.cli.parser import OneLineParser

CONFIGURATIONS = (ROOT / "itmkit/configs").glob("*/*.yaml")
FOUND = {
    "itmkit " + shlex.join(words): words
    for words in (
        *(words for page in PAGES.values() for words in commands(page)),
        *(words for path in sorted(CONFIGURATIONS) for words in configuration_commands(path)),
    )
}
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


class Parsed(Exception):
    """A parser took all words."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command up to where its words are parsed, in an empty folder."""
    original = OneLineParser.parse_args

    def parse_args(self: OneLineParser, *args: Any, **kwargs: Any) -> Any:
        parsed = original(self, *args, **kwargs)
        if type(self) is OneLineParser and self.exit_on_error:  # not that of the class of a value
            raise Parsed
        return parsed

    def run(words: list[str]) -> None:
        command, *options = words
        asks = any(word.startswith("--help") or word.endswith(".help") for word in options)
        if command in ("configs", "doctor") or asks:
            return main(words)
        if command not in TRAINER_COMMANDS or "--ensemble" in options:
            with pytest.raises(Parsed):
                main(words)
            return None
        # Files, runs and models that a reader has are not here.
        options = ["mate/shapes" if word.endswith(".yaml") else word for word in options]
        if "--ckpt_path" in options:
            at = options.index("--ckpt_path")
            options[at : at + 2] = [] if "--config" in options else ["--config", "mate/shapes"]
        with pytest.raises(SystemExit) as left:
            main([command, *options, "--print_config"])
        if left.value.code:
            raise SystemExit(left.value.code)
        return None

    def audit_data(options: list[str], *_: Any) -> None:  # would train
        parse_words(["fit", *options])
        raise Parsed

    def parse_words(words: list[str]) -> None:
        with pytest.raises(SystemExit) as left:
            main([*words, "--print_config"])
        assert not left.value.code

    monkeypatch.setattr("itmkit.cli.audit_data._audit", audit_data)
    monkeypatch.setattr(OneLineParser, "parse_args", parse_args)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize("command", FOUND)
def test_command_is_parsed(command: str, parse: Any) -> None:
    words = FOUND[command]
    assert words[0] in COMMANDS
    parse(words)


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "mate/shape"],
        ["fit", "--config", "mate/shapes", "--trainer.max_step", "3"],
        ["index", "photos/", "--modle", "mine"],
        ["search", "mine", "a dog", "--no_such"],
    ],
)
def test_wrong_command_is_found(words: list[str], parse: Any) -> None:
    with pytest.raises(SystemExit) as left:
        parse(words)
    assert left.value.code == 2


def test_commands_are_found_in_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nitmkit fit --config a \\\n  --name b  # a comment\nls && itmkit test | tee\n```\n"
        "```python\nitmkit x\n```\n"
    )
    assert commands(page) == [["fit", "--config", "a", "--name", "b"], ["test"]]
