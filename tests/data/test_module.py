from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from recorder import Recorder, fit, flat, same
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from itmkit.checks import InputError
from itmkit.data.batch import Batch
from itmkit.data.caption_noise import CaptionNoise
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.images import Regions
from itmkit.data.module import ImageTextData
from itmkit.data.relations import box_relations
from itmkit.data.shapes import ShapesDataset
from itmkit.data.tokenizer import Caption, TransformersTokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary

WORDS = "a the red blue dog cat runs sleeps on under grass table".split()


class ToyDataset(ImageTextDataset):
    """Random pixels, and ``captions`` different sentences an image."""

    def __init__(
        self, split: str = "train", *, images: int = 6, captions: int = 5, noise: float = 0.0
    ) -> None:
        generator = np.random.default_rng(len(split))
        sentences = [
            " ".join(generator.choice(WORDS, size=generator.integers(3, 8)))
            for _ in range(images * captions)
        ]
        rows = torch.arange(images).repeat_interleave(captions)
        super().__init__(split, [f"{row}.jpg" for row in range(images)], sentences, rows)
        self.noise = noise

    def image(self, row: int) -> Tensor | Regions:
        return torch.full((3, 4, 4), float(row)) + self.noise * torch.rand(3, 4, 4)


def data_of(**options: Any) -> ImageTextData:
    if not {"tokenizer", "text_features"} & options.keys():
        options = {"vocabulary_min_count": 1, **options}
    options = {"batch_size": 4, "eval_batch_size": 4, **options}
    return ImageTextData(options.pop("dataset", ToyDataset), **options)


def words_of(data: ImageTextData, ids: Tensor, mask: Tensor) -> str:
    tokenizer = data.tokenizer
    assert isinstance(tokenizer, WordTokenizer)
    words = [tokenizer.vocabulary.words[i] for i in ids[mask].tolist()]
    assert (words[0], words[-1]) == ("<start>", "<end>")
    return " ".join(words[1:-1])


def test_training_batch_pairs_each_caption_with_its_image() -> None:
    data = data_of(caption_views=2)
    train = data.split("train")
    seen = []
    for batch in data.train_dataloader():
        assert isinstance(batch, Batch)
        assert (len(batch), len(batch.images), len(batch.texts)) == (4, 4, 8)
        assert torch.equal(batch.text_image_ids, batch.image_ids.repeat_interleave(2))
        assert torch.equal(batch.text_image_ids, train.caption_images[batch.text_ids])
        assert torch.equal(batch.images.features[:, 0, 0, 0], batch.image_ids.float())
        for text, caption in enumerate(batch.text_ids.tolist()):
            text_words = words_of(data, batch.texts.ids[text], batch.texts.mask[text])
            assert text_words == train.captions[caption]
        seen += batch.text_ids[::2].tolist()
    assert len(set(seen)) == len(seen) == 28  # of 30; the last two fill no batch


def test_views_have_noise_of_their_own() -> None:
    data = data_of(caption_views=2, noise=CaptionNoise(p=0.5), batch_size=30)
    batch = next(iter(data.train_dataloader()))
    views = [
        words_of(data, ids, mask)
        for ids, mask in zip(batch.texts.ids, batch.texts.mask, strict=True)
    ]
    assert sum(a != b for a, b in zip(views[::2], views[1::2], strict=True)) > 15


def test_distinct_views_are_different_captions_of_the_image() -> None:
    data = data_of(caption_views=3, distinct_captions=True, batch_size=30)
    train = data.split("train")
    (batch,) = data.train_dataloader()
    views = batch.text_ids.view(30, 3)
    assert sorted(views[:, 0].tolist()) == list(range(30))  # the rows are still all captions
    assert torch.equal(batch.text_image_ids, batch.image_ids.repeat_interleave(3))
    assert torch.equal(train.caption_images[batch.text_ids], batch.text_image_ids)
    for row in views.tolist():
        assert len(set(row)) == 3
    for text, caption in enumerate(batch.text_ids.tolist()):
        text_words = words_of(data, batch.texts.ids[text], batch.texts.mask[text])
        assert text_words == train.captions[caption]


def test_distinct_views_follow_from_the_seed_and_the_epoch() -> None:
    def drawn(epoch: int, **options: Any) -> dict[int, list[int]]:
        data = data_of(caption_views=3, distinct_captions=True, batch_size=30, **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        return {row[0]: row[1:] for row in batch.text_ids.view(30, 3).tolist()}

    first = drawn(0)
    assert drawn(0) == first
    assert drawn(0, num_workers=1) == first
    for other in (drawn(1), drawn(0, seed=1)):
        assert sum(other[row] == first[row] for row in first) < 10  # 12 ways to draw 2 of 4


@pytest.mark.parametrize(("captions", "different"), [(1, 1), (2, 2)])
def test_distinct_views_fall_back_to_the_same_caption(captions: int, different: int) -> None:
    """Where an image has fewer captions than there are views."""
    dataset = partial(ToyDataset, captions=captions)
    data = data_of(dataset=dataset, caption_views=4, distinct_captions=True, batch_size=6)
    for batch in data.train_dataloader():
        for row in batch.text_ids.view(6, 4).tolist():
            assert len(set(row)) == different
            assert row[2:] == [row[0]] * 2
        assert torch.equal(data.split("train").caption_images[batch.text_ids], batch.text_image_ids)


def test_evaluation_batch_has_each_image_once_with_all_its_captions() -> None:
    data = data_of(noise=CaptionNoise(p=1.0), caption_views=2)
    for loader, split in (
        (data.val_dataloader(), "val"),
        (data.test_dataloader(), "test"),
        (data.predict_dataloader(), "test"),
    ):
        batches = list(loader)
        dataset = data.split(split)
        assert [len(batch) for batch in batches] == [4, 2]
        assert torch.cat([batch.image_ids for batch in batches]).tolist() == list(range(6))
        assert torch.cat([batch.text_ids for batch in batches]).tolist() == list(range(30))
        for batch in batches:
            assert torch.equal(batch.text_image_ids, batch.image_ids.repeat_interleave(5))
            for text, caption in enumerate(batch.text_ids.tolist()):
                expected = dataset.captions[caption].split()
                assert int(batch.texts.mask[text].sum()) == len(expected) + 2
                known = [word if word in vocabulary_of(data) else "<unk>" for word in expected]
                got = words_of(data, batch.texts.ids[text], batch.texts.mask[text])
                assert got == " ".join(known)


def vocabulary_of(data: ImageTextData) -> Vocabulary:
    assert isinstance(data.tokenizer, WordTokenizer)
    return data.tokenizer.vocabulary


@pytest.mark.parametrize("noise", [None, CaptionNoise(p=0.5)])
def test_captions_are_tokenised_once(noise: CaptionNoise | None) -> None:
    class Counting(WordTokenizer):
        encoded: ClassVar[list[str]] = []

        def encode(self, caption: str) -> Caption:
            self.encoded.append(caption)
            return super().encode(caption)

    data = data_of(tokenizer=Counting(Vocabulary.build(WORDS, min_count=1)), noise=noise)
    for epoch in range(2):
        train = data.train_dataloader()
        train.sampler.set_epoch(epoch)
        for loader in (train, data.val_dataloader()):
            assert len(list(loader)) > 1
    captions = data.split("train").captions + data.split("val").captions
    assert Counting.encoded == captions


@pytest.mark.filterwarnings("ignore:.*are unknown to the WordTokenizer")
def test_words_of_a_checkpoint_replace_tokens_made_before(tmp_path: Path) -> None:
    data, other = data_of(batch_size=30), data_of(batch_size=30, vocabulary_max_size=2)
    whole = list(data.train_dataloader())
    assert not same(other.train_dataloader(), whole)
    other.load_state_dict(data.state_dict())
    assert same(other.train_dataloader(), whole)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_unknown_words_are_warned_of_once_a_split(split: str) -> None:
    class Foreign(ToyDataset):
        """A fifth of the words of one split is unknown, or a little more of them."""

        vocabulary = Vocabulary.build([" ".join(WORDS)], min_count=1)
        more = False

        def __init__(self, name: str) -> None:
            super().__init__(name)
            known, unknown = WORDS[0], "犬"
            words = [known] * 4 + [unknown] + [unknown] * self.more
            self.captions = [" ".join(words)] * len(self.captions) if name == split else WORDS * 30
            self.captions = self.captions[: len(self.caption_images)]

    def loaders(data: ImageTextData) -> None:
        for _ in range(2):
            data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
            data.load_state_dict(data.state_dict())  # which has all captions tokenised again

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders(data_of(dataset=Foreign))
    Foreign.more = True
    with pytest.warns(UserWarning, match="are unknown to the WordTokenizer") as caught:
        loaders(data_of(dataset=Foreign))
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(f"33.3% of the tokens of the captions of split {split!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders(data_of(dataset=Foreign))  # as of a run that is loaded again


def test_bucketed_batches_have_less_padding_and_the_same_captions() -> None:
    plain, less = (
        list(noisy(bucket_batches=buckets, noise=None).train_dataloader()) for buckets in (0, 7)
    )
    assert same(noisy(bucket_batches=0).train_dataloader(), noisy().train_dataloader())
    texts = [torch.cat([batch.text_ids for batch in batches]) for batches in (plain, less)]
    assert torch.equal(*(each.sort().values for each in texts))
    assert not torch.equal(*texts)
    tokens = [[batch.texts.mask.numel() for batch in batches] for batches in (plain, less)]
    assert sum(tokens[1]) < sum(tokens[0])
    assert same(noisy(bucket_batches=7, noise=None, num_workers=1).train_dataloader(), less)


def test_vocabulary_comes_from_the_training_captions_or_the_dataset() -> None:
    data = data_of(vocabulary_max_size=5)
    built = Vocabulary.build(data.split("train").captions, min_count=1, max_size=5)
    assert vocabulary_of(data) == built
    assert data.vocabulary_size == 10

    class Own(ToyDataset):
        vocabulary = Vocabulary.build([" ".join(WORDS)], min_count=1)

    assert vocabulary_of(data_of(dataset=Own)) == Own.vocabulary


@pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
def test_word_pieces(bert_folder: Path) -> None:
    data = data_of(tokenizer=TransformersTokenizer(bert_folder), noise=CaptionNoise())
    batch = next(iter(data.train_dataloader()))
    assert (batch.texts.ids[:, 0] == 2).all()
    assert data.vocabulary_size == 16
    assert data.state_dict().keys() == {"fingerprints"}


def noisy(**options: Any) -> ImageTextData:
    options = {"noise": CaptionNoise(p=0.5), "caption_views": 2, **options}
    return data_of(dataset=partial(ToyDataset, noise=1.0), **options)


def test_batches_do_not_depend_on_workers_nor_on_the_global_generator() -> None:
    alone = list(noisy().train_dataloader())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(noisy().train_dataloader(), alone)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(noisy(num_workers=2).train_dataloader(), alone)
    assert not same(noisy(seed=1).train_dataloader(), alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_has_new_noise_and_augmentation(workers: int) -> None:
    loader = noisy(num_workers=workers, batch_size=1).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        rows = {int(batch.text_ids[0]): batch for batch in loader}
        epochs.append([rows[row] for row in sorted(rows)])
    images = [
        torch.equal(a.images.features, b.images.features) for a, b in zip(*epochs, strict=True)
    ]
    texts = [torch.equal(a.texts.ids, b.texts.ids) for a, b in zip(*epochs, strict=True)]
    assert len(images) == 30
    assert not any(images)
    assert sum(texts) < 10


BY_EPOCHS = {"max_epochs": 3}
BY_STEPS = {"max_steps": 21, "val_check_interval": 2}


@pytest.mark.parametrize("step", [3, 7, 9])  # an epoch has 7 batches
@pytest.mark.parametrize("length", [BY_EPOCHS, BY_STEPS])
@pytest.mark.filterwarnings("ignore")
def test_resumed_run_is_the_run_that_was_not_stopped(
    tmp_path: Path, step: int, length: dict[str, int]
) -> None:
    workers = int(step == 9)
    whole = fit(tmp_path, noisy(num_workers=workers), **length)
    assert len(whole.seen) == 21
    checkpoint = str(tmp_path / "saved" / f"step={step}.ckpt")
    resumed = fit(tmp_path, noisy(num_workers=workers), ckpt_path=checkpoint, **length)
    assert same(resumed.seen, whole.seen[step:])
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
def test_overfit_batches_are_the_first_ones_in_every_epoch(tmp_path: Path) -> None:
    options = {"overfit_batches": 2, "max_epochs": 3}
    whole = fit(tmp_path, noisy(), **options)
    first = fit(tmp_path, noisy(), max_steps=2)
    assert len(whole.seen) == 6
    assert same(whole.seen, first.seen * 3)
    for step in (2, 3):  # at the end of an epoch, and inside one
        checkpoint = str(tmp_path / "saved" / f"step={step}.ckpt")
        resumed = fit(tmp_path, noisy(), ckpt_path=checkpoint, **options)
        assert same(resumed.seen, whole.seen[step:])
        assert torch.equal(resumed.weight, whole.weight)


def test_processes_share_the_batches_of_one() -> None:
    whole = list(noisy(batch_size=6).train_dataloader())
    parts = []
    for rank in range(2):
        data = noisy(batch_size=3)
        data.trainer = SimpleNamespace(overfit_batches=0, world_size=2, global_rank=rank)  # type: ignore[assignment]
        loader = data.train_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)  # so Lightning leaves it in place
        parts.append(list(loader))
    assert len(whole) == len(parts[0]) == len(parts[1]) == 5
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(batch.text_ids, torch.cat([left.text_ids, right.text_ids]))
        images = torch.cat([left.images.features, right.images.features])
        assert torch.equal(batch.images.features, images)
        tokens = int(left.texts.mask.sum() + right.texts.mask.sum())
        assert int(batch.texts.mask.sum()) == tokens


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_carries_the_words(tmp_path: Path) -> None:
    data = data_of(vocabulary_max_size=7)
    fit(tmp_path, data, max_steps=1, val_check_interval=1)
    path = tmp_path / "saved" / "step=1.ckpt"
    saved = torch.load(path, weights_only=True)["ImageTextData"]
    fingerprints = saved.pop("fingerprints")
    assert saved == {"vocabulary": list(vocabulary_of(data).words)}
    assert fingerprints == data.fingerprints()
    assert fingerprints.keys() == {"train", "val"}

    other = data_of(vocabulary_max_size=3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    model = Recorder()
    trainer.test(model, other, ckpt_path=str(path), verbose=False, weights_only=True)
    assert vocabulary_of(other) == vocabulary_of(data)
    assert "train" not in other._splits
    assert model.judged == list(range(6))


def test_state_dict_round_trip_and_error_of_another_tokenizer(bert_folder: Path) -> None:
    state = data_of().state_dict()
    words = Vocabulary(state["vocabulary"])
    again = data_of(vocabulary_max_size=1)
    again.load_state_dict(state)
    assert vocabulary_of(again) == words
    data_of(tokenizer=WordTokenizer(words)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"tokenizer has 6 words that are not the 17 words"):
        data_of(tokenizer=WordTokenizer(Vocabulary(words.words[:6]))).load_state_dict(state)
    with pytest.raises(ValueError, match="tokenizer is a TransformersTokenizer, but"):
        data_of(tokenizer=TransformersTokenizer(bert_folder)).load_state_dict(state)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_batches_have_relations_where_a_threshold_is_given(threshold: float | None) -> None:
    data = data_of(
        dataset=partial(ShapesDataset, length=6, regions=True), relation_threshold=threshold
    )
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images = next(iter(loader)).images
        if threshold is None:
            assert images.relations is None
            continue
        assert images.boxes is not None
        assert images.mask is not None
        pairs = images.mask[:, :, None] & images.mask[:, None, :]
        assert torch.equal(images.relations, box_relations(images.boxes, threshold) * pairs)


def test_error_of_a_relation_threshold_for_pixels() -> None:
    data = data_of(relation_threshold=0.2)
    with pytest.raises(ValueError, match=r"relation_threshold is 0.2, but the images are pixels"):
        next(iter(data.val_dataloader()))


def test_setup_opens_only_what_a_stage_needs() -> None:
    opened: list[str] = []

    def make(split: str) -> ToyDataset:
        opened.append(split)
        return ToyDataset(split)

    data = data_of(dataset=make, val_split="dev")
    data.setup("test")
    assert opened == ["test"]
    data.setup("fit")
    data.setup("validate")
    assert opened == ["test", "train", "dev"]
    data = data_of(val_split=None)
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"val_split is None; expected the name of a split"):
        data.evaluated_split("val")
    assert data_of(val_split="dev").evaluated_split("val") == "dev"


def test_error_of_an_empty_split() -> None:
    class Empty(ToyDataset):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match="split 'val' has no images"):
        data_of(dataset=partial(ToyDataset, images=0)).setup("validate")
    with pytest.raises(ValueError, match="split 'val' has no images"):
        data_of(dataset=Empty).setup("validate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"caption_views": 0}, "caption_views is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"bucket_batches": -1}, "bucket_batches is -1"),
        ({"relation_threshold": 0.0}, "relation_threshold is 0.0; expected a number in"),
        ({"relation_threshold": 1.5}, "relation_threshold is 1.5; expected a number in"),
    ],
)
def test_error_of_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_of(**options)


@pytest.mark.parametrize("option", ["vocabulary_min_count", "vocabulary_max_size"])
def test_error_of_a_vocabulary_that_is_not_built(option: str) -> None:
    words = WordTokenizer(Vocabulary.build(WORDS, min_count=1))
    for given in ({"tokenizer": words}, {"text_features": "features"}):
        with pytest.raises(InputError, match=f"{option} is 3, without effect with a tokenizer or"):
            ImageTextData(ToyDataset, **{option: 3}, **given)


def test_error_of_a_batch_larger_than_the_split() -> None:
    told = re.escape("batch_size is 31 on 1 process(es); expected at most 30 for 30 rows")
    data = data_of(batch_size=31)
    with pytest.raises(InputError, match=told):
        data.train_dataloader()
    with pytest.raises(InputError, match=told):
        data.setup("fit")
    data.setup("validate")


def test_configuration_names_a_dataset_without_its_split(tmp_path: Path) -> None:
    root = tmp_path / "features"
    root.mkdir()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageTextData, "data")
    config = {
        "dataset": {
            "class_path": "itmkit.data.PrecompDataset",
            "init_args": {"root": str(root), "max_regions": 2},
        },
        "noise": {"class_path": "itmkit.data.CaptionNoise", "init_args": {"p": 0.3}},
        "batch_size": 3,
        "on_error": "skip",
    }
    data = parser.instantiate(parser.parse_object({"data": config})).data
    assert (data.noise.p, data.noise.mask, data.batch_size) == (0.3, 0.5, 3)
    assert data.on_error == "skip"
    with pytest.raises(FileNotFoundError, match=r"val_ims\.npy is missing"):
        data.split("val")

    config["dataset"]["init_args"]["max_region"] = 2  # type: ignore[index]
    with pytest.raises(Exception, match="max_region"):
        parser.parse_object({"data": config})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_are_pinned() -> None:
    batch = next(iter(data_of().train_dataloader()))
    for part in flat([batch]):
        assert part.is_pinned()
