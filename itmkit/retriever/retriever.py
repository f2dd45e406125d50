"""Model, tokenizer and preprocessing in one object."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from itmkit.checks import InputError, check_choice, check_count, type_of
from itmkit.chunks import chunks
from itmkit.data.batch import Images
from itmkit.data.feature_file import grid_boxes
from itmkit.data.images import relate
from itmkit.data.pictures import Picture, picture_pixels
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.tokenizer import Tokenizer, pad_texts
from itmkit.nn.encoders.transformer_backbone import TransformerBackbone
from itmkit.nn.functional import fill_padding
from itmkit.retrieval import Encoding, best_captions, best_images, evaluating, score_matrix
from itmkit.retriever.facts import ModelFacts, check_licence
from itmkit.systems import Matcher
from itmkit.systems.explanation import Explanation
from itmkit.systems.vocabulary import most_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from itmkit.index import Index

Item = TypeVar("Item")


class Ranking(NamedTuple):
    """The best items of each query, best first; unpacks as ``scores, rows``.

    Args:
        scores: ``(q, k)`` fp32.
        rows: ``(q, k)`` int64, which items they are.
    """

    scores: Tensor
    rows: Tensor


class Retriever:
    """A matcher that takes pictures and sentences as they are.

    :func:`itmkit.load` makes one from a run, a saved folder, or a CLIP-like model by its name.
    Pictures are paths, bytes of files, PIL images, arrays of uint8 ``(H, W, 3)`` or tensors of
    floats ``(3, H, W)`` in [0, 1]; sentences are strings, cut to what the model takes.

    Args:
        model: the matcher; put in evaluation mode.
        tokenizer: of its captions.
        preprocessing: of its images.
        backbone: makes the features of images from their pixels, for a model that was trained on
            stored features; None for one that takes pixels.
        text_backbone: makes the features of captions from their tokens, for a model that was
            trained on stored text features; None for one that takes tokens.
        feature_dtype: of the stored features of images, to which the backbone's are rounded.
        text_feature_dtype: the same of captions.
        relation_threshold: see :class:`itmkit.data.ImageTextData`.
        facts: where the model is from, which its card is written from; None: nothing is known.

    Attributes:
        source: what :func:`itmkit.load` loaded it from; None where it was built in code.

    Raises:
        InputError: in use, for what is no picture or no sentence, or none at all.

    Example:
        >>> from itmkit.data import Vocabulary, WordTokenizer
        >>> from itmkit.nn import BagOfWords, TimmGrid
        >>> from itmkit.systems import MATE
        >>> words = Vocabulary.build(["a red dog"], min_count=1)
        >>> model = MATE(TimmGrid("test_resnet", 8, image_size=32), BagOfWords(len(words), 8))
        >>> retriever = Retriever(model, WordTokenizer(words), Preprocessing(size=32))
        >>> picture = torch.rand(3, 40, 50)
        >>> retriever.scores([picture], ["a red dog", "a cat asleep"]).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: Matcher,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        *,
        backbone: nn.Module | None = None,
        text_backbone: TransformerBackbone | None = None,
        feature_dtype: Literal["float16", "float32"] = "float32",
        text_feature_dtype: Literal["float16", "float32"] = "float32",
        relation_threshold: float | None = None,
        facts: ModelFacts | None = None,
    ) -> None:
        check_choice("feature_dtype", feature_dtype, ("float16", "float32"))
        check_choice("text_feature_dtype", text_feature_dtype, ("float16", "float32"))
        self.source: str | None = None
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.backbone = None if backbone is None else backbone.eval()
        self.text_backbone = None if text_backbone is None else text_backbone.eval()
        self.feature_dtype = feature_dtype
        self.text_feature_dtype = text_feature_dtype
        self.relation_threshold = relation_threshold
        self.facts = ModelFacts() if facts is None else facts
        limits = [most_tokens(model), getattr(text_backbone, "max_length", None)]
        most = min((limit for limit in limits if limit is not None), default=None)
        if most is not None and (tokenizer.max_length is None or tokenizer.max_length > most):
            self.tokenizer = tokenizer.cut_to(most)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """Move the model; encodings and scores stay on the CPU."""
        self.model.to(device)
        for backbone in (self.backbone, self.text_backbone):
            if backbone is not None:
                backbone.to(device)
        return self

    # ------------------------------------------------------------------------------ encoding

    def encode_images(
        self, images: Iterable[Picture], *, batch_size: int = 32, progress: bool | None = None
    ) -> Encoding:
        """Encode pictures, a row a picture, on the CPU.

        Args:
            images: at least one.
            batch_size: pictures encoded at a time.
            progress: whether a bar is shown; None: on a terminal, from the second batch on.

        Raises:
            BadSampleError: a file that is gone, is no picture, or has too many pixels.
            InputError: what is no picture, or none at all.
        """
        check_count(batch_size=batch_size)
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise InputError(f"images is {type_of(images)}; expected a list of pictures")
        pictures = _at_least_one("images", images)
        parts, row = [], 0
        for batch in _batches(pictures, batch_size, "encode images", progress):
            pixels = [
                picture_pixels(one, self.preprocessing, name=f"images[{row + i}]")
                for i, one in enumerate(batch)
            ]
            parts.append(self.encode_pixels(torch.stack(pixels)))
            row += len(batch)
        return Encoding.cat(parts)

    def encode_pixels(self, pixels: Tensor) -> Encoding:
        """Encode preprocessed pictures ``(n, 3, H, W)`` of uint8, on the CPU."""
        floats = self.preprocessing.normalise(pixels).to(self.device)
        with evaluating(self.model):
            return self.model.encode_image(self._images(floats)).to("cpu")

    def encode_texts(
        self, texts: Iterable[str], *, batch_size: int = 256, progress: bool | None = None
    ) -> Encoding:
        """Encode sentences, a row a sentence, on the CPU.

        Args:
            texts: at least one; an empty one is encoded too.
            batch_size: sentences encoded at a time.
            progress: whether a bar is shown; None: on a terminal, from the second batch on.

        Raises:
            InputError: what is no string, or none at all.
        """
        check_count(batch_size=batch_size)
        if isinstance(texts, str):
            raise InputError(f"texts is {texts[:40]!r}; expected a list of strings")
        sentences = _at_least_one("texts", texts)
        for row, text in enumerate(sentences):
            if not isinstance(text, str):
                raise InputError(f"texts[{row}] is {type_of(text)}; expected a string")
        parts = []
        with evaluating(self.model):
            for batch in _batches(sentences, batch_size, "encode texts", progress):
                ids = [self.tokenizer.encode(_utf8(text)).ids for text in batch]
                stack = pad_texts(ids, self.tokenizer.pad_id)
                stack.ids, stack.mask = stack.ids.to(self.device), stack.mask.to(self.device)
                if self.text_backbone is not None:
                    states = torch.cat(self.text_backbone.hidden_states(stack.ids, stack.mask), -1)
                    states = states.to(getattr(torch, self.text_feature_dtype)).float()
                    stack.features = fill_padding(states, stack.mask)
                parts.append(self.model.encode_text(stack).to("cpu"))
        return Encoding.cat(parts)

    def _images(self, pixels: Tensor) -> Images:
        if self.backbone is None:
            return Images(pixels)
        with torch.no_grad():
            tokens, mask = self.backbone(pixels)
        tokens = tokens.to(getattr(torch, self.feature_dtype)).float()
        grid = getattr(self.backbone, "grid", None)
        boxes = None
        if grid is not None and grid[0] * grid[1] == tokens.shape[1]:
            boxes = grid_boxes(*grid).to(tokens.device).repeat(len(tokens), 1, 1)
        return relate(Images(tokens, mask, boxes), self.relation_threshold)

    # ------------------------------------------------------------------------------ retrieval

    def scores(
        self, images: Iterable[Picture] | Encoding, texts: Iterable[str] | Encoding
    ) -> Tensor:
        """Scores ``(n, m)`` of all pairs, fp32 on the CPU; higher is better.

        Args:
            images: ``n`` pictures, or what :meth:`encode_images` gave.
            texts: ``m`` sentences, or what :meth:`encode_texts` gave.
        """
        return score_matrix(self.model, *self._encodings(images, texts))

    def rank(
        self,
        images: Iterable[Picture] | Encoding,
        texts: Iterable[str] | Encoding,
        k: int = 10,
        *,
        query: Literal["text", "image"] = "text",
    ) -> Ranking:
        """The best images of each text, or the best texts of each image, best first.

        A model with a second stage puts its best ``rerank_top_k`` candidates in order by that.

        Args:
            images: ``n`` pictures, or what :meth:`encode_images` gave.
            texts: ``m`` sentences, or what :meth:`encode_texts` gave.
            k: items wanted a query; at most all are given.
            query: ``"text"``: each text gets images; ``"image"``: each image gets texts.

        Example:
            ``scores, rows = retriever.rank(paths, ["two dogs on a beach"], k=5)``
        """
        check_count(k=k)
        check_choice("query", query, ("text", "image"))
        pictures, sentences = self._encodings(images, texts)
        if query == "text":
            return Ranking(*best_images(self.model, sentences, pictures, k))
        return Ranking(*best_captions(self.model, pictures, sentences, k))

    def explanations(self, image: Picture, text: str) -> list[Explanation]:
        """Why a picture and a sentence have their score, as numbers for every pair of tokens.

        Args:
            image: one picture.
            text: one sentence.

        Returns:
            Of DAIM, and of MATE's global score, shares that add up to the score; of TVRN and of
            MATE's fusion the attention of the words. See
            :class:`itmkit.systems.explanation.Explanation`.

        Raises:
            InputError: the model has no such explanation, as one that compares two vectors alone.
        """
        return self._explained(image, text)[0]

    def explain(
        self, image: Picture, text: str, *, figure: Figure | None = None
    ) -> tuple[Figure, np.ndarray[Any, Any]]:
        """Draw why a picture and a sentence have their score: one small picture a word.

        A map is smooth where the model sees a grid, and of boxes where it sees regions; it is
        drawn over the part of the picture that the model sees. Needs ``itmkit[report]``.

        Args:
            image: one picture.
            text: one sentence.
            figure: of matplotlib, to draw into; None: a new one of ``pyplot``.

        Returns:
            The figure and its axes, an array ``(rows, 5)``.

        Raises:
            InputError: matplotlib is not installed, or as :meth:`explanations`.

        Example:
            ``figure, axes = retriever.explain("beach.jpg", "two dogs on a beach")``
        """
        from itmkit.report.explain import caption_words, draw_explanations

        found, pixels, boxes = self._explained(image, text)
        picture = pixels.permute(1, 2, 0).contiguous().numpy()
        words = caption_words(self.tokenizer.words(text), self.tokenizer.encode(_utf8(text)).words)
        return draw_explanations(found, picture, words, boxes, figure=figure)

    def _explained(
        self, image: Picture, text: str
    ) -> tuple[list[Explanation], Tensor, Tensor | None]:
        """Explanations, the pixels ``(3, H, W)`` that the model saw, the boxes of its regions."""
        pixels = picture_pixels(image, self.preprocessing, name="image")
        with evaluating(self.model):
            images = self._images(self.preprocessing.normalise(pixels[None]).to(self.device))
            own = self.model.encode_image(images)
            found = self.model.explain(own, self.encode_texts([text]).to(self.device))
        return found, pixels, None if images.boxes is None else images.boxes[0].cpu()

    def index(
        self,
        photos: str | Path,
        output: str | Path,
        *,
        table: str | Path | None = None,
        factory: str | None = None,
        queries: Sequence[str] | None = None,
        **options: Any,
    ) -> Index:
        """Index the pictures of a folder and of the folders in it, or bring the index up to date.

        Args:
            photos: folder of the pictures.
            output: folder of the index.
            table: CSV, TSV, JSONL or Parquet with a row a picture, in the column ``file_name``,
                ``filename``, ``image`` or ``path``; its other columns go into the index.
            factory: of a faiss index that finds candidates; see
                :meth:`itmkit.index.Index.build_faiss`. None: a faiss index that is there is built
                again where the pictures have changed.
            queries: sentences that its recall is measured with; None: those of the faiss index that
                was there, else the validation captions of the run.
            **options: see :func:`itmkit.index.build_index`.

        Returns:
            The index, ready for :meth:`~itmkit.index.Index.search`; its ``update`` says what was
            done.

        Raises:
            InputError: as of ``build_index``, and of ``build_faiss``: then the index is up to date,
                and its searches are exact or as they were.
        """
        from itmkit.index import Index, build_index, faiss_sentences, picture_columns
        from itmkit.retriever.queries import validation_captions

        if factory is not None or queries is not None:  # refused before anything is encoded
            queries = faiss_sentences(
                self, output, factory, queries, lambda: validation_captions(self.source)
            )
        columns = None if table is None else picture_columns(table)
        update = build_index(self, photos, output, columns=columns, **options)
        index = Index(output, self)
        index.update = update
        if queries is None:
            index.renew_faiss()
        else:
            index.build_faiss(factory, queries)
        return index

    def open_index(self, folder: str | Path) -> Index:
        """Open an index that was made with this model."""
        from itmkit.index import Index

        return Index(folder, self)

    def _encodings(
        self, images: Iterable[Picture] | Encoding, texts: Iterable[str] | Encoding
    ) -> tuple[Encoding, Encoding]:
        return (
            images if isinstance(images, Encoding) else self.encode_images(images),
            texts if isinstance(texts, Encoding) else self.encode_texts(texts),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal models: of names, shapes and samples of all weights, and settings."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(
            repr((type(self.model).__name__, self.feature_dtype, self.text_feature_dtype)).encode()
        )
        digest.update(repr((len(self.tokenizer), self.relation_threshold)).encode())
        for module in (self.model, self.backbone, self.text_backbone):
            for name, tensor in ({} if module is None else module.state_dict()).items():
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                values = tensor.detach().flatten()
                values = values[:: max(1, len(values) // 1024)].cpu().contiguous()
                digest.update(values.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # -------------------------------------------------------------------------------- on disk

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Save all of it to one folder: ``from_pretrained`` needs nothing else, and no network.

        The folder gets a card, ``README.md``: how the model is used, its recall with protocol and
        intervals, its data and the command that trained it, as far as ``facts`` says so. The code
        of the card is run before it is written.

        Args:
            folder: to make; one that holds a saved retriever is replaced.
            licence: identifier of the hub, such as ``"apache-2.0"``; None: as ``facts`` says.

        Raises:
            InputError: if the folder holds anything else, the model was built in code, or what was
                saved does not score as the model does.
        """
        from itmkit.retriever.folder import save

        with self._with_licence(licence):
            save(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        licence: str | None = None,
        card: bool = True,
    ) -> str:
        """Upload what :meth:`save_pretrained` saves; ``itmkit.load(repo_id)`` loads it.

        Args:
            repo_id: ``"user/name"`` of the repository; made if there is none.
            private: whether nobody else may see it; None: as it is, a new one as its owner's
                settings say, public if they say nothing.
            token: of an account that may write there; None: that of ``hf auth login`` or of the
                environment variable ``HF_TOKEN``.
            licence: identifier of the hub, such as ``"apache-2.0"``; None: as ``facts`` says.
            card: whether ``README.md`` is written anew; False leaves one that is there as it is.

        Returns:
            The address of the commit.

        Raises:
            InputError: as of ``save_pretrained``; there is no token, or the hub refuses it or
                cannot be reached; the repository holds other files, or is public where ``private``
                is true. Nothing was uploaded.

        Example:
            ``itmkit.load("mine").push_to_hub("me/shapes-mate", licence="apache-2.0")``
        """
        from itmkit.retriever.hub import push

        with self._with_licence(licence):
            return push(self, repo_id, private=private, token=token, card=card)

    @contextmanager
    def _with_licence(self, licence: str | None) -> Iterator[None]:
        """The facts have this licence, if one is given, from now on; not after an error."""
        check_licence(licence)
        before = self.facts
        if licence is not None:
            self.facts = replace(before, licence=licence)
        try:
            yield
        except BaseException:
            self.facts = before
            raise

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", trust: Sequence[str] = ()
    ) -> Self:
        """Load what :meth:`save_pretrained` saved. No code of the folder is run.

        Args:
            folder: of the saved retriever.
            device: where the model goes.
            trust: packages besides itmkit and torch whose classes the folder may name; they are
                imported.

        Raises:
            FileNotFoundError: if a file is missing.
            InputError: if a file is broken, of a newer version, or names another class.
        """
        from itmkit.retriever.folder import read

        return cls(**read(folder, trust)).to(device)

    def __repr__(self) -> str:
        return (
            f"Retriever({type(self.model).__name__}, {type(self.tokenizer).__name__}, "
            f"{self.preprocessing})"
        )


def _at_least_one(name: str, given: Iterable[Item]) -> list[Item]:
    if not isinstance(given, Iterable):
        raise InputError(f"{name} is {type_of(given)}; expected a list")
    items = list(given)
    if not items:
        raise InputError(f"{name} is empty; expected at least one")
    return items


def _batches(
    items: list[Item], size: int, what: str, progress: bool | None
) -> Iterator[list[Item]]:
    hidden = (len(items) <= size or None) if progress is None else not progress
    with tqdm(total=len(items), desc=what, disable=hidden) as bar:
        for part in chunks(len(items), size):
            batch = items[part]
            yield batch
            bar.update(len(batch))


def _utf8(text: str) -> str:
    """The text without halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
