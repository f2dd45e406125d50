"""Nothing that is read may run code: what docs/security.md promises of the whole package."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

import itmkit
from itmkit.data.tokenizer import TransformersTokenizer

SOURCE = Path(itmkit.__file__).parent
RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"),
    *("zipfile.ZipFile", "shutil.unpack_archive", "tarfile.TarFile.extractall"),
}
#: the usage that a card shows, which is a text of ours with the names of files in it
OWN_CODE = {("retriever/card.py", "exec")}
ONLY_WITH = {
    "np.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "from_pretrained": ("trust_remote_code", False),  # of transformers, whatever the class
}
OURS = ("Retriever.from_pretrained",)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_source_calls_what_runs_the_code_of_a_file() -> None:
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(SOURCE)}, line {call.lineno}: {ast.unparse(call)}"
            assert name not in RUNS_CODE or (str(path.relative_to(SOURCE)), name) in OWN_CODE, where
            if path != SOURCE / "runs/record.py":  # which asks git for the commit, by fixed words
                assert not name.startswith("subprocess."), where
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            assert options.get("trust_remote_code") in (None, "False"), where
            known = name.rpartition(".")[2] if name.endswith(".from_pretrained") else name
            if known in ONLY_WITH and name not in OURS:
                option, value = ONLY_WITH[known]
                assert options.get(option) == str(value), where
                found.add(known)
    assert found == set(ONLY_WITH)  # else the calls are spelt otherwise, and nothing was checked


def test_tags_of_a_configuration_build_nothing(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", type=Any)
    config = tmp_path / "config.yaml"
    config.write_text(f"name: !!python/object/apply:os.mkdir [{tmp_path / 'run'}]\n")
    with pytest.raises(ArgumentError):
        parser.parse_args([f"--config={config}"])
    assert not (tmp_path / "run").exists()


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nHostile = object")
    names = {"AutoTokenizer": ["hostile.Hostile", "hostile.Hostile"]}
    config = {"tokenizer_class": "Hostile", "auto_map": names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        TransformersTokenizer(tmp_path)
    assert not (tmp_path / "run").exists()
