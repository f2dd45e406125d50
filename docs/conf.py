"""Sphinx configuration of the documentation site: ``make docs``."""

import inspect
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import itmkit  # noqa: E402

project = "itmkit"
author = "The itmkit authors"
copyright = "the itmkit authors, Apache-2.0"
version = release = itmkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "tutorials.extension",
]
exclude_patterns = ["_build", "figures/**/*.md"]
root_doc = "index"

highlight_language = "none"  # of blocks without a language: commands, tables of text

html_theme = "furo"
html_title = "itmkit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]

# Links into other projects need the network: ITMKIT_DOCS_ONLINE=1 makes them.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }
    if os.environ.get("ITMKIT_DOCS_ONLINE") == "1"
    else {}
)
# `make links` asks every address of the pages.
linkcheck_ignore = [r"http://127\.0\.0\.1"]  # of `itmkit app`
linkcheck_anchors = False  # pages of GitHub have theirs from a script
linkcheck_retries = 3
linkcheck_timeout = 20

nitpicky = True
nitpick_ignore_regex = [
    # of other projects
    (r"py:.*", r"(?!itmkit\b).*"),
]


def show_public_bases(app, name, obj, options, bases):
    """A base that no page describes is left out: its own bases stand for it."""
    for base in [one for one in bases if getattr(one, "__name__", "").startswith("_")]:
        place = bases.index(base)
        bases[place : place + 1] = base.__bases__


def words_of_others(obj):
    """Whether the docstring of a method is that of a base class outside of itmkit."""
    owner = inspect.getmodule(obj)
    for name in getattr(obj, "__qualname__", "").split(".")[:-1]:
        owner = getattr(owner, name, None)
    if not isinstance(owner, type):
        return False
    versions = [(base, vars(base).get(obj.__name__)) for base in owner.__mro__]
    own = [base for base, method in versions if getattr(method, "__doc__", None)]
    return bool(own) and own[0].__module__.partition(".")[0] != "itmkit"


def skip_hooks(app, what, name, obj, skip, options):
    """Hooks that torch or Lightning describe, and fields of tuples, have nothing to say here."""
    hook = name != "forward" and words_of_others(obj)
    return True if hook or str(obj.__doc__).startswith("Alias for field number") else None


def clear_words_of_others(app, what, name, obj, options, lines):
    """``forward`` shows its arguments; what it does is said of its class."""
    if words_of_others(obj):
        lines.clear()


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("autodoc-skip-member", skip_hooks)
    app.connect("autodoc-process-docstring", clear_words_of_others)
