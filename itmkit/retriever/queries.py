"""Sentences that are searched: what a model cannot read of them, and those of a run."""

from __future__ import annotations

from itmkit.checks import InputError
from itmkit.data.tokenizer import Tokenizer
from itmkit.retriever.names import run_of
from itmkit.systems import load_run


def query_notes(tokenizer: Tokenizer, query: str) -> list[str]:
    """What a model does not see of a sentence: words that it does not know, and what is cut off.

    Args:
        tokenizer: of the model.
        query: the sentence.

    Returns:
        A line each; none where all is seen, or the tokenizer does not tell.
    """
    notes, query = [], query.encode("utf-8", "replace").decode("utf-8")
    ids, places = tokenizer.encode(query)
    words = tokenizer.words(query)
    known = {place for one, place in zip(ids, places, strict=True) if one != tokenizer.unk_id}
    unknown = [word for place, word in enumerate(words) if place in {*places} - known]
    if unknown:
        first = ", ".join(map(repr, list(dict.fromkeys(unknown))[:5]))
        notes.append(f"{len(unknown)} of {len(words)} words of the query are not known: {first}")
    if tokenizer.cuts(query):
        notes.append(f"the query is cut to the {tokenizer.max_length} tokens that the model takes")
    return notes


def validation_captions(source: str | None) -> list[str]:
    """The captions that a run validates on.

    Args:
        source: folder of the run, or a checkpoint in it, as :attr:`itmkit.Retriever.source`.

    Raises:
        FileNotFoundError: if its data are no longer there.
        InputError: if it is no run, or has no validation split.
    """
    run = run_of(source)
    data = None if run is None else load_run(run)[1]
    if data is None or data.val_split is None:
        raise InputError(
            f"queries is None, and the model ({source or 'built in code'}) is no run with captions "
            "to validate on; expected sentences (--queries FILE, one a line)"
        )
    return list(data.split(data.val_split).captions)
