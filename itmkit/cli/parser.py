"""A parser whose errors are one line each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pydoc import locate
from typing import NoReturn

from jsonargparse import ArgumentParser

from itmkit.cli.errors import fail

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|Expected a <class 'NoneType'>|Given value type: .*|Given value: ([{\[]|Nested|Name).*"
)


class OneLineParser(ArgumentParser):
    """A jsonargparse parser that tells an error in one line instead of twenty."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with status 2, or raise where jsonargparse wants to go on itself."""
        if not self.exit_on_error:
            super().error(message, ex)
        lines = (line.strip().removeprefix("- ") for line in message.splitlines())
        told = " ".join(line for line in lines if not _NOISE.fullmatch(line))
        told = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", told)
        told = re.sub(r'Parser key "([^"]+)":', r"\1:", told)
        fail(told + _suggestion(getattr(ex, "subcommand_parser", None) or self, message))


def _suggestion(parser: ArgumentParser, message: str) -> str:
    if "arguments are required" in message:
        return ". Start from a configuration, such as --config mate/shapes"
    wrong = re.search(r"option '([\w.]+)'", message, re.IGNORECASE)
    if wrong is None:
        return ""
    accepted: Iterable[str] = (name.lstrip("-") for name in parser._option_string_actions)
    owners = re.findall(r"given class_path '([\w.]+)'", message)
    owner = locate(owners[-1]) if owners else None
    if isinstance(owner, type):
        accepted = inspect.signature(owner).parameters
    close = get_close_matches(wrong.group(1), list(accepted), n=1)
    return f". Did you mean '{close[0]}'?" if close else ""
