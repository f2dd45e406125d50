"""A trained model with all that it needs: pictures and sentences in, scores out."""

from itmkit.retriever.batch_encoder import BatchEncoder, open_pictures, picture_names
from itmkit.retriever.facts import ModelFacts
from itmkit.retriever.loading import load
from itmkit.retriever.retriever import Ranking, Retriever

__all__ = [
    "BatchEncoder",
    "ModelFacts",
    "Ranking",
    "Retriever",
    "load",
    "open_pictures",
    "picture_names",
]
