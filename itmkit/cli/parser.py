"""A parser whose errors are one line each."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from itmkit.checks import did_you_mean
from itmkit.cli.errors import fail
from itmkit.cli.options import argument_texts
from itmkit.configs.agreement import short_names

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|Expected a <class 'NoneType'>|Given value type: .*|Given value: ([{\[]|Nested|Name).*"
    r"|Expected a path but .* either not accessible or invalid"
)
_PLAINER = (
    (r"<class '(?:builtins\.)?([\w.]+)'>", r"\1"),
    (r'Parser key "([^"]+)":', r"\1:"),
    (r"Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1"),
    (r"Expected a dot import path string: ([^\s;]+)", r"'\1' is no class that is known here"),
    (r"Type (typing|collections\.abc)\.Callable.*? expects a function or a callable class: ", ""),
    (r"(Option '[\w.]+' is not accepted)\. Got value: Namespace\(.*", r"\1"),
    (r"(are required: .*?)\. Got value: Namespace\(class_path='(.*?)'.*", r"\1 (of \2)"),
    (r"Expected an instantiatable class, but is abstract; Given value: (\S+)", r"\1 is abstract"),
    (r"Expected an instantiatable class, but (\S+) is abstract", r"\1 is abstract"),
    (
        r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        r"itmkit does not accept option '\1.\2'",
    ),
    (r"unrecognized arguments: --", "unknown option --"),
)


class OneLineParser(ArgumentParser):
    """A jsonargparse parser that reports an error in one line instead of twenty."""

    #: what to do where arguments are missing
    required_hint = ""

    def parse_args(  # type: ignore[override]  # overloads of argparse
        self, args: Sequence[str] | None = None, *rest: Any, **named: Any
    ) -> Any:
        """Parse words; a value null stays one in the options of a class inside another.

        jsonargparse hands such an option on to the parser of the inner class as the text ``None``.
        """
        if args is not None and not self.exit_on_error:
            args = [re.sub(r"(?<==)None$", "null", word) for word in args]
        return super().parse_args(args, *rest, **named)

    def format_help(self, *rest: Any, **named: Any) -> str:
        """The help, in which a type is its name alone."""
        return re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", super().format_help(*rest, **named))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with status 2, or raise where jsonargparse handles the error itself."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = ""
        for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
            if line and not _NOISE.fullmatch(line):
                text += (" " if text.endswith(":") else "; " if text else "") + line
        for pattern, plainer in _PLAINER:
            text = re.sub(pattern, plainer, text)
        if "arguments are required" in message and "given class_path" not in message:
            fail(text + self.required_hint)
        fail(text + _suggestion(self, message))


def call(
    function: Callable[..., Any],
    words: Sequence[str],
    command: str,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    as_positional: bool = True,
) -> Any:
    """Call a function with the words of a command, as its signature and docstring say.

    Args:
        function: of the command.
        words: after the command.
        command: as it is typed after ``itmkit``.
        arguments: what the signature cannot say, for ``add_argument``, by names and flags; their
            texts are in the docstring too.
        as_positional: whether parameters that need a value, and no name in Python, need none here.
    """
    about = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    texts = argument_texts(function)
    parser = OneLineParser(prog=f"itmkit {command}", allow_abbrev=False, description=about)
    parser.add_argument("--config", action="config", help="File of these options.")
    said: set[str | int] = set()
    for names, own in (arguments or {}).items():
        name = names.split()[-1].lstrip("-")
        parser.add_argument(*names.split(), help=texts[name], **own)
        said.add(name)
    parser.add_function_arguments(function, as_group=False, as_positional=as_positional, skip=said)
    options = parser.instantiate(parser.parse_args(list(words)))
    del options["config"]
    return function(**options)


def _suggestion(parser: ArgumentParser, message: str) -> str:
    """What may help: the closest name to one that is unknown, or what an abstract class lacks."""
    if wrong := re.search(r"unrecognized arguments: (--[\w.]+)", message):
        return did_you_mean(wrong.group(1), parser._option_string_actions)
    if wrong := re.search(r"option '([\w.]+)'", message, re.IGNORECASE):
        owners = re.findall(r"given class_path '([\w.]+)'", message)[-1:]
        if "expects a function or a callable class" in message:  # its class is in the value alone
            owners = re.findall(r"\bclass_path='([\w.]+)'", message) or owners
        classes = [found for owner in owners if isinstance(found := locate(owner), type)]
        accepted: Iterable[str] = (name.lstrip("-") for name in parser._option_string_actions)
        if classes:
            accepted = [name for one in classes for name in inspect.signature(one).parameters]
        return did_you_mean(wrong.group(1), accepted)
    if "is abstract" in message:
        named = re.search(r"(?:class, but|Given value:) ([\w.]+\.\w+)", message)
        lacking = sorted(getattr(locate(named[1]), "__abstractmethods__", ())) if named else []
        return f"; expected a class with {', '.join(lacking)}" if lacking else ""
    if wrong := re.search(r"dot import path string: (\w+)", message):
        name, known = wrong.group(1), short_names()
        other_kind = "; expected a class of another kind"
        return other_kind if name in known else did_you_mean(name, known)
    if wrong := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return did_you_mean(wrong.group(2), _names_in(wrong.group(1)))
    if wrong := re.search(r"No module named '([\w.]+)'", message):
        above, _, name = wrong.group(1).rpartition(".")
        here = ["itmkit", "lightning", "torch", *(path.stem for path in Path().glob("*.py"))]
        return did_you_mean(name, _names_in(above) if above else here)
    return ""


def _names_in(module_name: str) -> list[str]:
    module = sys.modules.get(module_name)
    parts = pkgutil.iter_modules(getattr(module, "__path__", []))
    return [*dir(module), *(part.name for part in parts)] if module else []
