"""Values of options as a parser reads them."""

from __future__ import annotations

from torch import nn

from itmkit.cli.matcher_parser import MatcherParser


class Inner(nn.Module):
    def __init__(self, size: int | None = 3, path: str | None = "here", name: str = "none") -> None:
        super().__init__()


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()


def _inner(*words: str) -> dict[str, object]:
    parser = MatcherParser()
    parser.add_subclass_arguments(Outer, "model")
    classes = [f"--model={__name__}.Outer", f"--model.inner={__name__}.Inner"]
    options = parser.parse_args([*classes, *words]).model.init_args.inner.init_args
    return dict(options.as_dict())


def test_null_of_a_class_inside_another_stays_null() -> None:
    words = ["--model.inner.size=null", "--model.inner.init_args.path", "null"]
    assert _inner(*words) == {"size": None, "path": None, "name": "none"}


def test_texts_with_none_in_them_stay_texts() -> None:
    words = ["--model.inner.path=a=None.npy", "--model.inner.name", "NotNone"]
    assert _inner(*words) == {"size": 3, "path": "a=None.npy", "name": "NotNone"}
