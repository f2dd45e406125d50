"""The base of all systems: four methods that a system writes, and what follows from them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import isabstract
from pathlib import Path
from typing import IO, Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from itmkit import __version__
from itmkit._internals import data_module_of
from itmkit.checks import InputError, TimeUnit, check_choice, check_count, check_share, type_of
from itmkit.data.batch import Batch, Images, Texts, check_batch, check_images, check_texts
from itmkit.distributed import gather_all
from itmkit.nn import HubnessCorrection
from itmkit.nn.layers.linear import linear
from itmkit.nn.weights import read_torch_file, report_misfits, stored_by
from itmkit.precision import at_least_float32, autocast_off
from itmkit.pretrained import sources
from itmkit.retrieval import Encoding, Gallery, encode
from itmkit.systems.build import restore_system
from itmkit.systems.evaluation import Evaluation
from itmkit.systems.explanation import Explanation
from itmkit.systems.finite_loss import FiniteLoss
from itmkit.systems.hubness_bank import BankFilling
from itmkit.systems.optimizer import make_optimizer
from itmkit.systems.run_start import check_run
from itmkit.systems.schedule import fit_to_run, scale_by_lr_factor, scheduler_config
from itmkit.systems.vocabulary import check_vocabulary, complete_embeddings, limit_captions


class Matcher(LightningModule, ABC):
    """Learns which images and texts belong together.

    A system writes :meth:`encode_image`, :meth:`encode_text`, :meth:`score` and :meth:`loss`, and
    :meth:`rerank` if it has a finer second stage. Training, evaluation and search are written once,
    against these methods.

    A training loss that is not finite ends the run with a ``ValueError`` that names the step, the
    terms and the images, on a GPU one step later. Nothing is saved after it, nor are weights that
    are not finite.

    A word embedding without a number of words (``vocab_size: null``) gets that of the tokenizer of
    the data, or of the checkpoint that is loaded. Before anything is trained or measured, the
    number of token ids of tokenizer and text encoder are compared: a tokenizer that has more is an
    error, one that has fewer a warning.

    Recall is logged as ``val/rsum`` and so on; that of further dataloaders has a suffix, as in
    ``val/rsum/dataloader_idx_1``. A checkpoint is loaded by the system that wrote it and by its
    subclasses.

    Attributes:
        evaluation: how the recall of an evaluation is measured, and what was last found.
        model_config: what the model was built from, ``class_path`` and ``init_args``, where that
            was a configuration; its checkpoints hold it.

    Args:
        optimizer: makes the optimizer from parameter groups; None: AdamW, lr 2e-4, weight decay
            1e-4.
        lr_scheduler: makes the schedule from the optimizer; None: a constant learning rate. A
            ``ReduceLROnPlateau`` without a ``monitor`` watches ``val/rsum``.
        lr_scheduler_interval: whether the schedule advances by ``epoch`` or by ``step``.
        lr_factors: name prefix → factor on the learning rate of all parameters whose name begins
            with it, such as ``{"text_encoder.backbone": 0.1}``; the longest matching prefix wins.
            Schedules keep the ratio of the rates; those that cannot are refused.
        warmup: how long a loss that chooses its negatives counts all of them, in epochs or steps;
            its own choice holds after that.
        warmup_unit: ``epoch`` or ``step``.
        rerank_top_k: candidates of a query that the second stage puts in order; 0 for none.
        rerank_weight: share of the second stage's score in the order of the candidates, in [0, 1].
            None: weight and number of candidates, at most ``rerank_top_k``, are fitted in every
            validation of a fit, by :func:`~itmkit.retrieval.fit_second_stage`, and kept with the
            checkpoint. ``val/held_out/…`` then has the rSum and R@1 of the half of the queries that
            was not fitted on, by the first stage and by both; where both have less, the second
            stage is left out. Before that, nothing is re-ranked.
        rerank_standardised: whether the second stage's scores are brought to the mean and spread of
            the first stage's over the candidates before they are mixed.

    Raises:
        InputError: if a number is out of its range; when a run starts, for callbacks that search
            a batch size or learning rate.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: TimeUnit = "epoch",
        lr_factors: Mapping[str, float] | None = None,
        warmup: int = 0,
        warmup_unit: TimeUnit = "epoch",
        rerank_top_k: int = 0,
        rerank_weight: float | None = 0.5,
        rerank_standardised: bool = False,
    ) -> None:
        super().__init__()
        check_count(0, warmup=warmup)
        check_choice("warmup_unit", warmup_unit, TimeUnit)
        self.warmup = warmup
        self._warmed_up: list[tuple[str, Any]] = []  # names of losses, and their own negatives
        self.warmup_unit: TimeUnit = warmup_unit
        check_choice("lr_scheduler_interval", lr_scheduler_interval, TimeUnit)
        check_count(0, rerank_top_k=rerank_top_k)
        if rerank_weight is not None:
            check_share(rerank_weight=rerank_weight)
        elif not rerank_top_k:
            raise InputError(
                "rerank_weight is None, to be fitted, but rerank_top_k is 0; expected 1 or more"
            )
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval: TimeUnit = lr_scheduler_interval
        self.lr_factors = dict(lr_factors or {})
        self.rerank_top_k = rerank_top_k
        self.rerank_weight = rerank_weight or 0.0
        self.rerank_standardised = rerank_standardised
        #: of the vectors, of a system that has one
        self.hubness_correction: HubnessCorrection | None = None
        #: most candidates that a fit of the second stage may choose; None where none is wanted
        self.rerank_most = rerank_top_k if rerank_weight is None else None
        self.model_config: dict[str, Any] | None = None
        self.evaluation = Evaluation()
        self._finite_loss = FiniteLoss()
        self._bank_filling = BankFilling()
        self._restored_from: tuple[str, str | None] | None = None  # while weights are loaded

    #: Fields of an image's encoding that :meth:`score` reads, None for all. An index reads the
    #: others of the best pictures alone.
    score_fields: tuple[str, ...] | None = None

    def forward(self, images: Images, texts: Texts) -> Tensor:
        """Scores ``(n, m)`` of images and captions.

        Raises:
            InputError: for what is not :class:`~itmkit.data.Images` and
                :class:`~itmkit.data.Texts`.
        """
        check_images(images)
        check_texts(texts)
        return self.score(self.encode_image(images), self.encode_text(texts))

    @abstractmethod
    def encode_image(self, images: Images) -> Encoding:
        """Everything the other methods need of ``n`` images, a row an image."""

    @abstractmethod
    def encode_text(self, texts: Texts) -> Encoding:
        """Everything the other methods need of ``m`` captions, a row a caption."""

    @abstractmethod
    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """Logits ``(n, m)``, at least fp32; pair (i, j) depends on image i and caption j alone."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named terms of the loss of a batch, and their sum under ``"loss"``.

        The terms are those of the global batch: the same on every process.
        """

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """Second-stage scores ``(p,)`` of the pairs ``(p, 2)`` of an image and a caption row."""
        raise InputError(
            f"rerank_top_k is not 0; expected 0 for a {type(self).__name__}, which has no second "
            "stage"
        )

    def explain(self, image: Encoding, text: Encoding) -> list[Explanation]:
        """What the words and the parts of the image have to do with the score of one pair.

        Args:
            image: one encoded image.
            text: one encoded caption.

        Raises:
            InputError: the system has no such explanation, or there is more than one pair.
        """
        raise InputError(
            f"model is a {type(self).__name__}, which cannot explain a score; expected a system "
            "that compares words with parts of the image: DAIM, MATE or TVRN"
        )

    def batch_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of a training batch over all processes, and which of its pairs are true.

        Every process scores its own images with the captions of all. For systems that are trained
        on their scores alone.

        Args:
            batch: with one caption an image.

        Returns:
            Scores ``(n, n)`` of the global batch, with exact gradients, and bool ``(n, n)``; the
            same on every process.

        Raises:
            InputError: if the batch does not have one caption an image.
        """
        check_one_caption(batch)
        texts = self.encode_text(batch.texts).gathered(sizes=batch.sizes)
        scores = self.score(self.encode_image(batch.images), texts)
        scores, ids = gather_all([scores, batch.image_ids], sizes=batch.sizes)
        return scores, ids[:, None] == ids

    def corrected(self, vectors: Tensor, side: str) -> Tensor:
        """Vectors ``(n, D)`` of a side, ``image`` or ``text``, as they are searched with."""
        correction = self.hubness_correction
        if correction is None:
            return vectors
        return correction.image(vectors) if side == "image" else correction.text(vectors)

    def uncorrected(self, vectors: Tensor) -> Tensor:
        """What :meth:`corrected` was given."""
        correction = self.hubness_correction
        return vectors if correction is None else correction.without(vectors)

    @property
    def has_second_stage(self) -> bool:
        """Whether :meth:`rerank` can be called."""
        return type(self).rerank is not Matcher.rerank

    # ------------------------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        check_run(self, self.trainer)
        limit_captions(self, data_module_of(self.trainer))
        # Before optimizers and copies are made. An evaluation waits: a checkpoint may bring its own
        # words, and then nothing is counted; where one is loaded later, it has to find the rows.
        if stage == "fit" or self.trainer.strategy.restore_checkpoint_after_setup:
            complete_embeddings(self, data_module_of(self.trainer))

    def on_fit_start(self) -> None:
        self._finite_loss, self._bank_filling = FiniteLoss(), BankFilling()
        check_vocabulary(self, data_module_of(self.trainer))

    def on_train_start(self) -> None:
        fit_to_run(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        check_batch(batch)
        terms = self.loss(batch)
        if not isinstance(terms, Mapping) or "loss" not in terms:  # of a system that a user wrote
            found = f"the terms {sorted(terms)}" if isinstance(terms, Mapping) else type_of(terms)
            raise InputError(
                f"{type(self).__name__}.loss gives {found}; expected a dict of named terms with "
                "their sum under 'loss'"
            )
        step = f"step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})"
        self._finite_loss.watch(terms, batch.image_ids, step=step)
        parts = {f"train/{name}": term.detach() for name, term in terms.items() if name != "loss"}
        self.log_dict(parts, batch_size=len(batch))
        self.log("train/loss", terms["loss"].detach(), prog_bar=True, batch_size=len(batch))
        return terms["loss"]

    def on_train_epoch_end(self) -> None:
        self._bank_filling.fill(self)  # where no validation has

    def on_train_end(self) -> None:
        self._finite_loss.check()

    def configure_optimizers(self) -> Any:
        """Parameter groups by learning-rate factor; parameters without gradient are left out."""
        optimizer = make_optimizer(self, self.optimizer, self.lr_factors)
        if self.lr_scheduler is None:
            return optimizer
        schedule = self.lr_scheduler(optimizer)
        scale_by_lr_factor(schedule)
        config = scheduler_config(schedule, self.lr_scheduler_interval)
        return {"optimizer": optimizer, "lr_scheduler": config}

    def warm_up(self, **losses: nn.Module) -> None:
        """Say in the constructor which loss the ``warmup`` is of, by the name of its attribute.

        One that has no choice of negatives has none: a warning says so.
        """
        for name, loss in losses.items():
            own = getattr(loss, "negatives", None)
            if own is not None:
                self._warmed_up.append((name, own))
            elif self.warmup:
                warnings.warn(
                    f"warmup is {self.warmup}, without effect: {type(loss).__name__} has no choice "
                    "of negatives",
                    stacklevel=3,
                )

    def choose_negatives(self) -> None:
        """Let the loss of :meth:`warm_up` count all negatives at first, then those of its choice.

        To be called before the loss is.
        """
        early = self.trained_less_than(self.warmup, self.warmup_unit)
        for name, own in self._warmed_up:
            loss: Any = self.get_submodule(name)
            loss.negatives = "all" if early else own

    def trained_less_than(self, count: int, unit: TimeUnit) -> bool:
        """Whether training is younger than so many epochs or steps."""
        return (self.current_epoch if unit == "epoch" else self.global_step) < count

    # ----------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        self._finite_loss.check()
        self._complete_vocabulary()

    def on_validation_epoch_start(self) -> None:
        # Not earlier: a callback that averages weights has now put them in place.
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._bank_filling.fill(self)

    def on_test_start(self) -> None:
        self._complete_vocabulary()

    def on_predict_start(self) -> None:
        self._complete_vocabulary()

    def _complete_vocabulary(self) -> None:
        if self.trainer.state.fn != "fit":  # whose start has done it
            complete_embeddings(self, data_module_of(self.trainer))
            check_vocabulary(self, data_module_of(self.trainer))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.add(encode(self, [batch]), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.evaluation.log_recall(self, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.evaluation.log_recall(self, "test", self.trainer.test_dataloaders)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Gallery:
        """The batch's images and captions, encoded."""
        return encode(self, [batch])

    @property
    def second_stage_is_trained(self) -> bool:
        """Whether :meth:`rerank` has learnt something that could be of use."""
        return self.has_second_stage

    # ------------------------------------------------------------------------------ checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite_loss.check()
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                raise InputError(f"nothing is saved: the weights of {name!r} are not finite")
        checkpoint["itmkit_version"] = __version__
        checkpoint["system"] = type(self).__name__
        if self.rerank_most is not None:
            checkpoint["second_stage"] = {"top_k": self.rerank_top_k, "weight": self.rerank_weight}
        if self.model_config is not None:
            checkpoint["model_config"] = self.model_config
        trainer = self._attached_trainer()
        data = data_module_of(trainer) if trainer else None
        checkpoint["pretrained"] = sources(getattr(data, "tokenizer", None), *self.modules())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        source = checkpoint.get("source")
        if source is None:
            trainer = self._attached_trainer()
            source = f"checkpoint '{trainer.ckpt_path}'" if trainer else "the checkpoint"
        check_system(checkpoint, type(self), name=source)
        self._restored_from = source, checkpoint.get("itmkit_version")
        if self.rerank_most is not None and (fitted := checkpoint.get("second_stage")):
            self.rerank_top_k, self.rerank_weight = fitted["top_k"], fitted["weight"]

    def _attached_trainer(self) -> Trainer | None:
        try:
            return self.trainer
        except RuntimeError:  # there is none
            return None

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        if self._restored_from is None:  # a state dict of the user
            return super().load_state_dict(state_dict, strict, assign)
        (source, version), self._restored_from = self._restored_from, None
        if self.hubness_correction is None:  # as it is chosen now: the weights are the same
            bank = "hubness_correction."
            state_dict = {n: one for n, one in state_dict.items() if not n.startswith(bank)}
        with stored_by(version), report_misfits(self, state_dict, source):
            return super().load_state_dict(state_dict, strict, assign)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[Any],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """The model that a checkpoint of ``itmkit fit`` holds, as it was configured there.

        Weights that the configuration starts from are neither fetched nor read. A checkpoint of a
        model that was built in code does not know its arguments: they are given here, and all is as
        in Lightning.

        Args:
            checkpoint_path: the checkpoint; ``MATE.load_from_checkpoint`` takes those of MATE,
                ``Matcher.load_from_checkpoint`` those of any system, and a subclass of MATE those
                of MATE, as one of its own.
            map_location: where its tensors go, as of ``torch.load``; None: the CPU.
            hparams_file: see Lightning; only of use without a configuration.
            strict: whether all weights, and no others, have to be there.
            weights_only: whether the file may hold plain data alone, as those of itmkit do; where
                False, all is as in Lightning.
            **kwargs: arguments of the model that replace those of its configuration.

        Returns:
            The model, in training mode as Lightning leaves it: call ``eval()`` to use it.

        Raises:
            InputError: a checkpoint of another system, weights that do not fit, or a configuration
                that names classes that are neither itmkit's nor torch's nor imported before.
        """
        stored: dict[str, Any] = {}
        if hparams_file is None and weights_only is not False:
            stored = read_torch_file(checkpoint_path, f"checkpoint '{checkpoint_path!s}'")
            if not isinstance(checkpoint_path, (str, Path)):
                checkpoint_path.seek(0)
        if stored.get("model_config") is None:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )
        source = f"checkpoint '{checkpoint_path!s}'"
        model: Self = restore_system(stored, cls, kwargs, source=source, strict=strict is not False)
        return model.to(map_location) if isinstance(map_location, (str, torch.device)) else model


def check_system(checkpoint: Mapping[str, Any], system: type, *, name: str) -> None:
    """Raise unless a checkpoint is of a system, or of one that the system derives from.

    Raises:
        InputError: with the ``name`` of the checkpoint.
    """
    own = [
        one.__name__ for one in system.__mro__ if issubclass(one, Matcher) and not isabstract(one)
    ]
    found = checkpoint.get("system")
    if found not in own:
        of = f"of the system {found}" if found else "of no system of itmkit"
        raise InputError(f"{name} is {of}; expected {' or '.join(own)}")


def check_one_caption(batch: Batch) -> None:
    """Raise unless a batch has one caption an image.

    Raises:
        InputError: with both numbers.
    """
    if len(batch.texts) != len(batch.images):
        raise InputError(
            f"the batch holds {len(batch.texts)} texts for {len(batch.images)} images; expected "
            "one an image (caption_views: 1 of the data)"
        )


def cosine_scores(image: Tensor, text: Tensor) -> Tensor:
    """Products ``(n, m)`` of unit vectors ``(n, D)`` and ``(m, D)``, at least fp32."""
    with autocast_off(image):
        return linear(at_least_float32(image), at_least_float32(text))
