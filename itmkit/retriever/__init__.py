"""A trained model with all that it needs: pictures and sentences in, scores out."""

from itmkit.retriever.loading import load
from itmkit.retriever.retriever import Ranking, Retriever

__all__ = ["Ranking", "Retriever", "load"]
