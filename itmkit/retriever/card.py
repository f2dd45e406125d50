"""The card of a saved model: ``README.md``, from what is known of it, with code that was run."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image

from itmkit.checks import InputError
from itmkit.retrieval import EvaluatedOn, evaluation_rows, recall_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from itmkit.retriever.facts import ModelFacts
    from itmkit.retriever.retriever import Retriever

CARD = "README.md"
_PICTURES = ("beach.jpg", "street.jpg")
_SENTENCES = ("two dogs on a beach", "a red car in the street")
_SIDES = {"i2t": "image to text", "t2i": "text to image"}


def model_card(retriever: Retriever, name: str, trust: list[str]) -> str:
    """The card of a retriever.

    Args:
        retriever: with its facts.
        name: folder, or name on the hub, that it is loaded by.
        trust: packages whose classes it is made of, besides itmkit and torch.
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts, system = retriever.facts, type(retriever.model).__name__
    title = name.rpartition("/")[2]
    evaluated = [(one["recall"], _evaluated_on(one)) for one in facts.evaluations]
    tables = [
        (recall_table(evaluation_rows(system, recall, about)), about) for recall, about in evaluated
    ]
    data = ModelCardData(
        license=facts.licence,
        base_model=facts.base_models or None,
        library_name="itmkit",
        tags=["image-text-matching", "image-text-retrieval", system.lower()],
        model_name=title,
        eval_results=_results(facts) or None,
    )
    parts = (retriever.model, retriever.backbone, retriever.text_backbone)
    parameters = sum(p.numel() for part in parts if part is not None for p in part.parameters())
    dataset = yaml.safe_dump(facts.dataset, sort_keys=False, allow_unicode=True).strip()
    template = files("itmkit.retriever").joinpath("card.md.jinja").read_text("utf-8")
    card = ModelCard.from_template(
        data,
        template_str=template,
        title=title,
        system=system,
        facts=facts,
        usage=usage(name, _PICTURES, trust),
        tables=tables,
        parameters=parameters,
        size=retriever.preprocessing.size,
        length=retriever.tokenizer.max_length,
        dataset=dataset,
        versions=", ".join(f"{package} {number}" for package, number in facts.versions.items()),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card).strip()) + "\n"


def usage(name: str, pictures: tuple[str, ...], trust: list[str]) -> str:
    """Code that loads a model and ranks pictures; it leaves ``scores`` and ``rows``."""
    options = f", trust={json.dumps(trust)}" if trust else ""
    return (
        "import itmkit\n\n"
        f"retriever = itmkit.load({json.dumps(name)}{options})\n"
        f"pictures = {json.dumps(pictures)}\n"
        f"sentences = {json.dumps(_SENTENCES)}\n"
        "scores, rows = retriever.rank(pictures, sentences, k=1)  # of each sentence, its picture"
    )


def check_usage(retriever: Retriever, folder: Path, trust: list[str]) -> None:
    """Run the code of the card on a saved folder, with two pictures of noise.

    Raises:
        InputError: it does not run, or what was loaded scores otherwise than what was saved.
    """
    found: dict[str, Any] = {}
    with TemporaryDirectory() as work:
        paths = tuple(str(Path(work) / name) for name in _PICTURES)
        noise = np.random.default_rng(0).integers(0, 256, (len(paths), 64, 64, 3), dtype=np.uint8)
        for path, pixels in zip(paths, noise, strict=True):
            Image.fromarray(pixels).save(path)
        expected = retriever.rank(paths, _SENTENCES, k=1).scores
        try:
            exec(usage(str(folder), paths, trust), found)
        except Exception as error:
            raise InputError(f"the saved model cannot be used: {error}") from error
    if not torch.allclose(found["scores"], expected, rtol=1e-2, atol=1e-3):
        raise InputError(
            f"the saved model gives the scores {found['scores'].tolist()}; expected those of the "
            f"model that was saved, {expected.tolist()}"
        )


def _results(facts: ModelFacts) -> list[EvalResult]:
    """Recall for the metadata of the card."""
    from huggingface_hub import EvalResult

    dataset = (facts.dataset or {}).get("class_path", "images and captions").rpartition(".")[2]
    return [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=dataset.lower(),
            dataset_name=f"{dataset}, {_evaluated_on(one).gallery}",
            dataset_config=one["about"].get(
                "protocol"
            ),  # the hub joins what differs in names alone
            dataset_split=one["about"]["split"],
            metric_type=f"recall_at_{k}",
            metric_name=f"{words} R@{k}",
            metric_value=one["recall"][f"{side}_r{k}"],
        )
        for one in facts.evaluations
        for side, words in _SIDES.items()
        for k in (1, 5, 10)
    ]


def _evaluated_on(evaluation: dict[str, Any]) -> EvaluatedOn:
    """What it was measured on, as far as this version knows the entries."""
    known = {one.name for one in fields(EvaluatedOn)}
    return EvaluatedOn(**{n: value for n, value in evaluation["about"].items() if n in known})
