"""The LightningDataModule."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Generator, Tensor

from itmkit.checks import (
    InputError,
    check_choice,
    check_count,
    check_dropout,
    check_share,
    check_unused,
)
from itmkit.data.caption_noise import CaptionNoise
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.exclusion import kept_captions
from itmkit.data.loader import (
    Collated,
    EvaluationImages,
    Loader,
    OnError,
    Skipped,
    Skips,
    TrainingPairs,
)
from itmkit.data.order import EpochOrder, RepeatedOrder, check_batch_size, mixed_seed
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.split_tokens import SplitTokens
from itmkit.data.splits import Splits
from itmkit.data.swapped_captions import SwappedCaptions
from itmkit.data.tokenizer import Tokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary
from itmkit.distributed import rank, world_size
from itmkit.files import user_path, write_text

_OF_WORDS = ("vocabulary_min_count", "vocabulary_max_size")


class ImageTextData(LightningDataModule):
    """The splits of a dataset as batches.

    A training batch has a caption a row, with its image and ``caption_views`` noisy
    tokenisations; order, noise and augmentation follow from the seed, the epoch and the caption,
    so a resumed run sees what an unbroken one does, and k processes what one does. An evaluation
    batch, of any split, has an image a row, without augmentation, followed by all of its captions
    as they are.

    Args:
        dataset: makes the dataset of a split from the name of the split.
        tokenizer: of the captions; where None, the words of the dataset's own vocabulary, or of
            one built from the training captions. Checkpoints carry these words. A split of which
            more than a fifth of the tokens are unknown is warned of, once a process. Not needed
            with ``text_features``; where given, it must be the one that these were made with.
        text_features: folder with the token features that ``itmkit extract --text_model`` wrote of
            the captions; batches then hold them too (``Texts.features``), for
            :class:`itmkit.nn.StoredTokens`.
        batch_size: captions of a training batch, on each process.
        eval_batch_size: images of an evaluation batch, on each process.
        caption_views: tokenisations of every training caption, adjacent in the batch.
        bucket_batches: over how many batches of the epoch's order captions of close lengths are
            gathered into the same batch, which saves padding; 0: captions meet by chance alone. A
            caption then meets mostly captions as long as itself, and so do the hardest negatives.
        distinct_captions: the further views are other captions of the image, drawn anew every
            epoch, rather than the same caption again; where there are enough.
        noise: what is done to training captions; nothing where None. Stored features have no
            words to change.
        region_drop: share in [0, 1) of the regions or grid cells of a training image that are left
            out, drawn anew each time; they cost nothing then. Not for pixels.
        relation_threshold: in (0, 1]: regions of an image are related where the IoU of their boxes,
            or the relation that the dataset gives, is at least this; see :func:`box_relations`.
            Where None, batches have the relations that the dataset gives, as they are.
        vocabulary_min_count: how often a word must appear to enter a built vocabulary; refused,
            as the next one, where a tokenizer or ``text_features`` say what the tokens are.
        vocabulary_max_size: most words of a built vocabulary.
        num_workers: processes that read the images; 0 reads them in the training process.
        seed: of order, noise and augmentation, at least 0.
        train_split: name of the split to train on.
        val_split: name of the split to validate on; no validation where None.
        test_split: name of the split to test and predict on.
        exclude: table (CSV, TSV, JSONL or Parquet) of what is not trained on: a row names an image
            (column ``image``) and one of its captions word for word (column ``caption``); without
            a caption, all captions of the image. It is counted in a line when training starts.
            Validation and test do not change.
        noise_rate: share of the training captions that stand at an image which they do not
            describe, in [0, 1], for studies of noisy correspondence; see
            :class:`~itmkit.data.SwappedCaptions`. A fit lists them in ``swapped_captions.csv``.
            Validation and test do not change.
        noise_seed: of the choice of these captions, at least 0.
        on_error: what becomes of an image that its dataset cannot use (:class:`BadSampleError`: not
            readable, gone, too large, not finite). ``"raise"``: the error. ``"skip"``: a training
            row gets another caption with its image, drawn by the seed, the epoch and the caption;
            an evaluation leaves out the image with its captions. See :attr:`skipped`. Errors of
            annotations, captions and feature files are always raised.

    Raises:
        InputError: if a size is less than 1, or ``bucket_batches``, ``num_workers`` or ``seed``
            less than 0, or ``relation_threshold`` or ``on_error`` out of its range; with the first
            batch, if ``relation_threshold`` is given for images without boxes; with any batch, if
            more than half of the images of a split were skipped; when a split is opened, if
            ``text_features`` lacks one of its captions, or is of another text model or tokenizer
            than the other splits, the checkpoint or ``tokenizer``; or the image features are of
            another backbone than those of the other splits or of the checkpoint.
    """

    def __init__(
        self,
        dataset: Callable[[str], ImageTextDataset],
        tokenizer: Tokenizer | None = None,
        *,
        text_features: str | Path | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 128,
        caption_views: int = 1,
        bucket_batches: int = 0,
        distinct_captions: bool = False,
        noise: CaptionNoise | None = None,
        region_drop: float = 0.0,
        relation_threshold: float | None = None,
        vocabulary_min_count: int = 4,
        vocabulary_max_size: int = 12_000,
        num_workers: int = 0,
        seed: int = 0,
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str = "test",
        exclude: str | Path | None = None,
        noise_rate: float = 0.0,
        noise_seed: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        own = locals()
        super().__init__()
        check_count(
            batch_size=batch_size, eval_batch_size=eval_batch_size, caption_views=caption_views
        )
        check_count(0, bucket_batches=bucket_batches, num_workers=num_workers, seed=seed)
        check_share(noise_rate=noise_rate)
        check_dropout(region_drop=region_drop)
        check_count(0, noise_seed=noise_seed)
        if noise_rate and train_split in (val_split, test_split):
            raise InputError(
                f"noise_rate is {noise_rate} and train_split is evaluated too; expected another "
                "split for val_split and test_split, whose captions are true"
            )
        if relation_threshold is not None and not 0 < relation_threshold <= 1:
            raise InputError(
                f"relation_threshold is {relation_threshold}; expected a number in (0, 1], or None"
            )
        check_choice("on_error", on_error, OnError)
        if noise is not None and text_features is not None:
            raise InputError(
                "noise and text_features are both given; expected one of them: stored features "
                "have no words to change (StoredTokens has a token_drop)"
            )
        if tokenizer is not None or text_features is not None:
            where = "with a tokenizer or features of captions"
            check_unused(ImageTextData, own, _OF_WORDS, where)
        self.dataset = dataset
        self.text_features = text_features
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.caption_views = caption_views
        self.bucket_batches = bucket_batches
        self.distinct_captions = distinct_captions
        self.noise = noise
        self.region_drop = region_drop
        self.relation_threshold = relation_threshold
        self.vocabulary_min_count = vocabulary_min_count
        self.vocabulary_max_size = vocabulary_max_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.exclude = exclude
        self.noise_rate = noise_rate
        self.noise_seed = noise_seed
        self.on_error = on_error
        self._skips: Skips = {}
        self._splits = Splits(self._made, self._served)
        self._tokens = SplitTokens(
            self._captions_of,
            tokenizer,
            words=self._own_words,
            folder=None if text_features is None else self.text_folder,
            train_split=train_split,
        )
        self._kept: Tensor | None = None  # rows of captions

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all captions; built when first asked for."""
        return self._tokens.tokenizer

    def limit_tokens(self, most: int) -> None:
        """Cut captions to so many tokens, where the tokenizer would leave more.

        Args:
            most: tokens that the text encoder takes, special ones included.
        """
        self._tokens.limit(most)

    @property
    def vocabulary_size(self) -> int:
        """How many ids the tokenizer has: the rows that a word embedding needs."""
        return len(self.tokenizer)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How photos become pixels, also those of stored features, in the splits opened so far.

        Checkpoints carry it; data that is loaded from one with another is warned of.
        """
        return self._splits.preprocessing(self.train_split)

    @property
    def skipped(self) -> list[Skipped]:
        """The images that this process has skipped so far, each once, with the reason."""
        return list(self._skips.values())

    def write_skipped(self, folder: str | Path | None) -> Path | None:
        """Write what all processes have skipped so far as ``skipped.json``; all must call this.

        Args:
            folder: folder to write to, of the first process; those of the others do not matter.
                Nothing is written where None, or where nothing was skipped.

        Returns:
            The path of the file, where one was written.
        """
        gathered = [self._skips] * world_size()
        if world_size() > 1:
            dist.all_gather_object(gathered, self._skips)
        skips = {key: skip for found in gathered for key, skip in found.items()}
        if folder is None or not skips or rank() != 0:
            return None
        path = user_path(folder) / "skipped.json"
        content = [skips[key]._asdict() for key in sorted(skips)]
        write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return path

    def write_swapped(self, folder: str | Path | None) -> Path | None:
        """Write ``swapped_captions.csv``: what ``noise_rate`` moved to another image.

        Its columns are ``image``, ``caption`` and ``own_image``, from where the caption comes;
        ``exclude`` takes it, to train without these captions.

        Args:
            folder: of the first process. Nothing is written where None, or without ``noise_rate``.

        Returns:
            The path of the file, where one was written.
        """
        train = self.split(self.train_split)
        if folder is None or rank() != 0 or not isinstance(train, SwappedCaptions):
            return None
        path = user_path(folder) / "swapped_captions.csv"
        train.write(path)
        return path

    def split(self, name: str) -> ImageTextDataset:
        """The dataset of a split; made when first asked for.

        Raises:
            InputError: if it has no images.
        """
        return self._splits.open(name)

    def evaluated_split(self, stage: Literal["val", "test"]) -> str:
        """The name of the split that is validated on, or that is tested on.

        Raises:
            InputError: if nothing is validated on.
        """
        name = self.test_split if stage == "test" else self.val_split
        if name is None:
            raise InputError("val_split is None; expected the name of a split to validate on")
        return name

    def _made(self, name: str) -> ImageTextDataset:
        dataset = self.dataset(name)
        if self.noise_rate and name == self.train_split and len(dataset):
            return SwappedCaptions(dataset, rate=self.noise_rate, seed=self.noise_seed)
        return dataset

    def _served(self, dataset: ImageTextDataset) -> ImageTextDataset:
        """What a split serves, made of its dataset."""
        return dataset

    @property
    def training_captions(self) -> Tensor:
        """The rows of the captions that are trained on, ``(k,)`` int64: those not excluded."""
        if self._kept is None:
            train = self.split(self.train_split)
            self._kept = kept_captions(train, self.exclude)
            if self.exclude is not None:
                every = len(train.captions)
                images = len(train.caption_images.unique())
                left = len(train.caption_images[self._kept].unique())
                rank_zero_only(print)(
                    f"excluded from training: {every - len(self._kept):,} of {every:,} captions, "
                    f"{images - left:,} of {images:,} images with all of theirs ({self.exclude})",
                    file=sys.stderr,
                )
        return self._kept

    def text_folder(self, split: str) -> str | Path:
        """Folder with the token features of a split, where there is ``text_features``."""
        assert self.text_features is not None
        return self.text_features

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage needs, so that bad data is found before the first step."""
        needed: dict[str | None, list[str | None]] = {
            "fit": [self.train_split, self.val_split],
            "validate": [self.val_split],
            "test": [self.test_split],
            "predict": [self.test_split],
            None: [self.train_split, self.val_split, self.test_split],
        }
        for name in needed[stage]:
            if name is None:
                continue
            if not self.split(name).captions and stage != "predict":
                raise InputError(f"split {name!r} has no captions; expected at least one")
            if self.text_features is not None:
                self._tokens.of(name)
        if stage == "fit":
            check_batch_size(self.batch_size, len(self.training_captions), self._num_replicas)

    @property
    def _num_replicas(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def train_dataloader(self) -> Loader:
        """One row a caption, in an order of its own every epoch; the last rows may be left out."""
        pairs = TrainingPairs(
            **self._parts(self.train_split),
            kept=None if self.exclude is None else self.training_captions,
            views=self.caption_views,
            distinct=self.distinct_captions,
            noise=self.noise,
            region_drop=self.region_drop,
            seed=self.seed,
        )
        trainer: Any = self.trainer  # mypy does not know all of its attributes
        overfits = trainer is not None and trainer.overfit_batches > 0
        order = (RepeatedOrder if overfits else EpochOrder)(
            len(pairs),
            batch_size=self.batch_size,
            seed=self.seed,
            num_replicas=self._num_replicas,
            rank=trainer.global_rank if trainer else 0,
            bucket_batches=self.bucket_batches,
            sizes=pairs.lengths,
        )
        return Loader(pairs, batch_size=self.batch_size, sampler=order, **self._reading())

    def val_dataloader(self) -> Loader | list[Any]:
        """One row an image of the validation split, with all of its captions."""
        return [] if self.val_split is None else self._evaluation(self.val_split)

    def test_dataloader(self) -> Loader:
        """One row an image of the test split, with all of its captions."""
        return self._evaluation(self.test_split)

    def predict_dataloader(self) -> Loader:
        """As :meth:`test_dataloader`."""
        return self.test_dataloader()

    def evaluation_dataloader(
        self,
        split: str,
        *,
        share: tuple[int, int] = (0, 1),
        rows: Sequence[int] | None = None,
    ) -> Loader:
        """One row an image of any split, with all of its captions, without augmentation.

        Args:
            split: its name.
            share: which part of the batches, and of how many parts: (0, 1) for all. The batches are
                the same whatever the number of parts.
            rows: of the images, in their order; None: all.
        """
        part, parts = share
        wanted = range(len(self.split(split))) if rows is None else rows
        size = self.eval_batch_size
        length = -(-len(wanted) // (size * parts)) * size  # whole batches
        # Where all are wanted, a Trainer may share the rows out as it likes.
        some = parts > 1 or rows is not None
        own = {"sampler": wanted[part * length : (part + 1) * length]} if some else {}
        return self._evaluation(split, **own)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Numbers of ``images`` and ``captions`` of the splits that are open, by name.

        Of training they are what is trained on, without what is excluded.
        """
        found = {
            name: {"images": len(split), "captions": len(split.captions)}
            for name, split in self._splits.items()
        }
        if self.exclude is not None and self.train_split in found:
            kept = self.training_captions
            images = self._splits[self.train_split].caption_images[kept].unique()
            found[self.train_split] = {"images": len(images), "captions": len(kept)}
        return found

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the names and captions, in their order, of the splits ``train`` and ``val``.

        Splits that are not opened are left out; what is excluded counts. Equal hashes: the same
        images, as far as their names tell, with the same captions.
        """
        parts = {"train": self.train_split, "val": self.val_split}
        found = {
            part: self._splits.fingerprint(name)
            for part, name in parts.items()
            if name is not None and name in self._splits
        }
        if self.exclude is not None and "train" in found:
            kept = self.training_captions.numpy().tobytes()
            found["train"] = sha256(found["train"].encode() + kept).hexdigest()
        return found

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: :meth:`fingerprints`, and what pictures and sentences became.

        That is the preprocessing, the folder of stored features, the text model of stored text
        features, and the words of a word tokenizer.
        """
        state: dict[str, Any] = {"fingerprints": self.fingerprints()}
        if self.preprocessing is not None:
            state["preprocessing"] = self.preprocessing.to_dict()
        if source := self._splits.stored_features().get(self.train_split):
            state["features"] = str(source.features.path.parent.resolve())
            state["image_backbone"] = source.backbone
        return state | self._tokens.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the words of a checkpoint.

        Raises:
            InputError: if another tokenizer was given to the constructor, or stored features are
                of other models than those of the checkpoint.
        """
        saved, own = state_dict.get("preprocessing"), self.preprocessing
        if saved is not None and own is not None and own != Preprocessing.from_dict(saved):
            rank_zero_warn(f"the checkpoint was trained on pixels of {saved}, the data has {own}")
        for source in self._splits.stored_features().values():
            source.check_same_backbone(state_dict.get("image_backbone"), "the checkpoint")
        self._tokens.load_state_dict(state_dict)

    def _evaluation(self, split: str, **options: Any) -> Loader:
        images = EvaluationImages(**self._parts(split))
        return Loader(images, batch_size=self.eval_batch_size, **self._reading(), **options)

    def _parts(self, split: str) -> dict[str, Any]:
        return {
            "dataset": self.split(split),
            "tokens": self._tokens.of(split),
            "tokenizer": self.tokenizer,
            "relation_threshold": self.relation_threshold,
            "on_error": self.on_error,
            "skips": self._skips,
        }

    def _captions_of(self, split: str) -> Sequence[str]:
        return self.split(split).captions

    def _own_words(self) -> WordTokenizer:
        """Those of the dataset's vocabulary, or of one that is built from its captions."""
        train = self.split(self.train_split)
        vocabulary = train.vocabulary or Vocabulary.build(
            [train.captions[row] for row in self.training_captions.tolist()],
            min_count=self.vocabulary_min_count,
            max_size=self.vocabulary_max_size,
        )
        return WordTokenizer(vocabulary)

    def _reading(self) -> dict[str, Any]:
        # A generator of its own: making an iterator then draws nothing from torch's global one.
        return {
            "collate_fn": _as_it_is,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": Generator().manual_seed(mixed_seed(self.seed)),
        }


def _as_it_is(collated: Collated) -> Collated:
    return collated
