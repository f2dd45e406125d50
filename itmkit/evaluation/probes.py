"""How often a model prefers the true one of two sentences about a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.checks import InputError, check_count, check_finite, type_of
from itmkit.chunks import chunks
from itmkit.data import ImageTextDataset, ShapesDataset, Texts, Tokenizer
from itmkit.data.probes import KINDS, scene_probes
from itmkit.data.tokenizer import CaptionTokens
from itmkit.metrics.ranks import tied_from
from itmkit.retrieval import Encoding, Gallery, RetrievalModel, evaluating, pair_scores
from itmkit.retrieval.score import score_block, second_stage


class ProbeResult(NamedTuple):
    """What became of the probes of one kind.

    Args:
        accuracy: per cent of the pairs of which the true sentence has the larger score; 50 by
            chance. Pairs whose scores are tied count as wrong.
        tied: per cent of the pairs whose scores are tied; all, where a model cannot tell the
            sentences apart.
        pairs: number of pairs.
        second_stage: accuracy by the second stage's score alone; None without one.
    """

    accuracy: float
    tied: float
    pairs: int
    second_stage: float | None = None


def probe_scenes(
    matcher: RetrievalModel,
    gallery: Gallery,
    dataset: ImageTextDataset,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    chunk_size: int = 16,
) -> dict[str, ProbeResult]:
    """Show a model a true and a false sentence about each scene, and count which it prefers.

    The sentences differ in two exchanged colours, in relations (left and right, above and below) or
    in the number of things: :func:`itmkit.data.probes.scene_probes`. A pair of ``colours`` has the
    same words, so that a bag of words cannot tell its sentences apart. Which is true cannot be
    guessed from the sentences alone, as the dataset says both kinds as often.

    Args:
        matcher: the model.
        gallery: encoded scenes; their ids are rows of the dataset.
        dataset: a :class:`~itmkit.data.ShapesDataset`.
        tokenizer: that the model reads sentences with.
        seed: of the probes.
        chunk_size: at most this many scenes are scored at a time.

    Returns:
        By kind: ``colours``, ``relations``, and ``counts`` where the sentences say how many things
        there are.

    Raises:
        InputError: another dataset, a gallery without scenes of it, or a score that is not finite.

    Example:
        Of a run: ``model, data = load_run(folder)``, then ``probe_scenes(model, encode(model,
        data.test_dataloader()), data.split("test"), data.tokenizer)``.
    """
    check_count(chunk_size=chunk_size)
    if not isinstance(dataset, ShapesDataset):
        raise InputError(f"dataset is {type_of(dataset)}; expected the scenes of ShapesDataset")
    rows = {image: row for row, image in enumerate(gallery.image_ids.tolist())}
    probes = [one for one in scene_probes(dataset, seed=seed) if one.image in rows]
    if not probes:
        raise InputError(
            f"gallery has {len(rows)} images, of which dataset has no sentence; expected its scenes"
        )
    probes.sort(key=lambda one: rows[one.image])
    places: dict[str, int] = {}
    pairs = [  # of a scene with the true and with the false sentence
        [places.setdefault(sentence.text, len(places)) for sentence in (one.true, one.false)]
        for one in probes
    ]
    texts = _encoded(matcher, list(places), tokenizer)
    images = torch.tensor([rows[one.image] for one in probes])
    sentences = torch.tensor(pairs)
    scores = _pair_scores(matcher, gallery.images, texts, images, sentences, chunk_size)
    tied = (scores[:, 0] >= tied_from(scores[:, 1])) & (scores[:, 1] >= tied_from(scores[:, 0]))
    right = (scores[:, 0] > scores[:, 1]) & ~tied
    second = None
    if second_stage(matcher, None, None).top_k:
        both = torch.stack([images.repeat_interleave(2), sentences.flatten()], 1)
        own = pair_scores(matcher, gallery.images, texts, both).cpu().view(-1, 2)
        second = tied_from(own[:, 0]) > own[:, 1]
    kinds = [one.kind for one in probes]
    found = {}
    for kind in KINDS:
        chosen = torch.tensor([one == kind for one in kinds])
        if chosen.any():
            found[kind] = ProbeResult(
                _per_cent(right[chosen]),
                _per_cent(tied[chosen]),
                int(chosen.sum()),
                None if second is None else _per_cent(second[chosen]),
            )
    return found


def _encoded(matcher: RetrievalModel, texts: list[str], tokenizer: Tokenizer) -> Encoding:
    tokens = CaptionTokens(map(tokenizer.encode, texts))
    with evaluating(matcher):
        parts = []
        for part in chunks(len(texts), 256):
            own = tokens.padded(range(part.start, part.stop), tokenizer.pad_id)
            own = Texts(own.ids.to(matcher.device), own.mask.to(matcher.device))
            parts.append(matcher.encode_text(own).to("cpu"))
    return Encoding.cat(parts)


def _pair_scores(
    matcher: RetrievalModel,
    images: Encoding,
    texts: Encoding,
    rows: Tensor,
    sentences: Tensor,
    chunk_size: int,
) -> Tensor:
    """First-stage scores ``(p, 2)`` of scenes, in the order of their rows, with two sentences."""
    found = torch.empty(len(rows), 2)
    with evaluating(matcher):
        for part in chunks(len(images), chunk_size):
            here = ((rows >= part.start) & (rows < part.stop)).nonzero()[:, 0]
            if len(here):
                columns, local = sentences[here].unique(return_inverse=True)
                block = score_block(
                    matcher, images[part].to(matcher.device), texts[columns].to(matcher.device)
                )
                found[here] = block.float().cpu()[rows[here, None] - part.start, local]
    check_finite(found, lambda pair, _: f"matcher.score of image row {int(rows[pair])}")
    return found


def probes_line(about: Mapping[str, Mapping[str, float | None]]) -> str:
    """The probes of an evaluation as a line of text.

    Args:
        about: by kind, the fields of a :class:`ProbeResult`.

    Example:
        >>> print(probes_line({"colours": ProbeResult(97.25, 0.0, 5000)._asdict()}))
        probes, right of two sentences (chance 50 %): colours 97.2 % of 5,000
    """
    parts = []
    for kind, one in about.items():
        part = f"{kind} {one['accuracy']:.1f} % of {one['pairs']:,}"
        if one["tied"]:
            part += f" ({one['tied']:.1f} % tied)"
        if one["second_stage"] is not None:
            part += f" (second stage alone {one['second_stage']:.1f} %)"
        parts.append(part)
    return f"probes, right of two sentences (chance 50 %): {', '.join(parts)}"


def _per_cent(chosen: Tensor) -> float:
    return 100 * chosen.double().mean().item()
