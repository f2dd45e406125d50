"""What is fetched, what a checkpoint makes needless, and what is told without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from clip_models import save_clip
from huggingface_hub import constants
from local_hub import local_hub
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from itmkit import pretrained
from itmkit.checks import InputError
from itmkit.data import TransformersTokenizer
from itmkit.nn import BiGRU, TimmGrid, TransformerText
from itmkit.pretrained import sources, weights_follow


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached, and nothing in its cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "_reached", [])


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "a", "dog", "run", "##s"]
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: TransformerText("no-one/no-model"), "name_or_path is 'no-one/no-model'"),
        (lambda: TransformersTokenizer("no-one/no-model"), "name_or_path is 'no-one/no-model'"),
        (
            lambda: TimmGrid("vit_tiny_patch16_224", pretrained=True),
            "pretrained is true and model_name is 'vit_tiny_patch16_224'",
        ),
        (lambda: TimmGrid("hf-hub:no-one/no-model"), "model_name is 'hf-hub:no-one/no-model'"),
    ],
)
def test_error_without_a_network_is_quick(make: Callable[[], Any], option: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=f"{option}, which is not on this machine") as caught:
        make()
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert "http://127.0.0.1:9 cannot be reached" in str(caught.value)
    assert not constants.is_offline_mode()


@pytest.mark.usefixtures("no_network")
def test_a_name_server_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow:
        def head(self, url: str, timeout: float) -> None:
            time.sleep(30)

    monkeypatch.setattr(huggingface_hub, "get_session", Slow)
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot be reached"):
        TransformersTokenizer("no-one/no-model")
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("no_network")
def test_threads_that_fetch_at_once_leave_the_hub_as_it_was() -> None:
    inside, last = threading.Event(), threading.Event()

    def second() -> None:
        with pretrained.fetching("name_or_path", "no-one/second"):
            inside.set()
            assert last.wait(10)
            assert constants.is_offline_mode()

    with ThreadPoolExecutor(1) as pool:
        with pretrained.fetching("name_or_path", "no-one/first"):
            found = pool.submit(second)
            assert not inside.wait(0.2)
            with pretrained.fetching("name_or_path", "no-one/nested"):
                assert constants.is_offline_mode()
        last.set()
        found.result(10)
    assert not constants.is_offline_mode()


def test_the_reason_of_the_library_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"name_or_path is '{tmp_path}'; expected a model .*: "):
        TransformerText(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_brings_model_and_tokenizer(bert: Path, tmp_path: Path) -> None:
    """The folder that they were made from is gone, as a hub is that cannot be reached."""
    encoder, tokenizer = TransformerText(bert, dim=4), TransformersTokenizer(bert)
    torch.save(sources(tokenizer, *nn.ModuleList([encoder]).modules()), tmp_path / "stored.pt")
    stored = torch.load(tmp_path / "stored.pt", weights_only=True)
    folder = bert.rename(bert.with_name("elsewhere"))
    with weights_follow(stored):
        again, pieces = TransformerText(bert, dim=4), TransformersTokenizer(bert)
    again.load_state_dict(encoder.state_dict())
    for caption in ("a dog runs", "", "A cat"):
        assert pieces.encode(caption) == tokenizer.encode(caption)
    for name in ("pad_id", "mask_id", "unk_id", "special_ids", "max_length", "name_or_path"):
        assert getattr(pieces, name) == getattr(tokenizer, name), name
    assert pieces.content_ids.equal(tokenizer.content_ids)
    assert len(pieces) == len(tokenizer) == 10
    ids = torch.tensor([tokenizer.encode("a dog").ids])
    encoder.eval(), again.eval()
    assert torch.equal(encoder(ids, ids > 0)[0], again(ids, ids > 0)[0])
    assert again.pretrained_source == encoder.pretrained_source
    assert pieces.pretrained_source == tokenizer.pretrained_source
    with pytest.raises(InputError, match="cannot be reached"):  # and not after it
        TransformerText(bert)
    folder.rename(bert)


def test_what_an_older_checkpoint_lacks_is_read_without_weights(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    with weights_follow(None):
        assert TransformerText(bert).width == 8


def test_no_weights_are_read_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda *args, **kw: pytest.fail("loaded")
    )
    np.save(tmp_path / "vectors.npy", np.zeros((7, 3)))
    shutil.move(tmp_path / "vectors.npy", tmp_path / "moved.npy")
    with weights_follow():
        TimmGrid("test_resnet", pretrained=True, image_size=64)
        TimmGrid("test_resnet", checkpoint=tmp_path / "gone.safetensors", image_size=64)
        BiGRU(7, 3, 4, word_vectors=tmp_path / "vectors.npy")
    with pytest.raises(FileNotFoundError):
        BiGRU(7, 3, 4, word_vectors=tmp_path / "vectors.npy")


@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_brings_the_config_of_a_timm_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"architecture": "test_resnet", "num_classes": 7, "input_size": [3, 96, 96]}
    read = ({**config, "hf_hub_id": "me/mine", "source": "hf-hub"}, "test_resnet", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models.load_model_config_from_hf", lambda name, **kw: read)
        patch.setattr("timm.models._factory.load_model_config_from_hf", lambda name, **kw: read)
        patch.setattr(pretrained, "_reached", [True])
        grid = TimmGrid("hf-hub:me/mine", 4, image_size=64)
    with weights_follow(sources(grid)):
        again = TimmGrid("hf-hub:me/mine", 4, image_size=64, pretrained=True)
    again.load_state_dict(grid.state_dict())
    assert again.pretrained_source == grid.pretrained_source


LOAD = """
import sys
from itmkit.checks import InputError
from itmkit.nn import ClipModel
for name in sys.argv[1:]:
    try:
        print(ClipModel(name, frozen=True).pad_id)
    except InputError as error:
        print(error)
"""


def test_download_is_announced_with_size_and_licence(tmp_path: Path) -> None:
    """A model is downloaded once by its name, and then is there without the hub."""
    save_clip(tmp_path / "hub/someone/tiny")
    size = (tmp_path / "hub/someone/tiny/model.safetensors").stat().st_size

    def load(endpoint: str, *names: str) -> tuple[list[str], str]:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *names],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines(), done.stderr

    with local_hub(tmp_path / "hub", "mit") as endpoint:
        (first, again, wrong), errors = load(endpoint, "someone/tiny", "someone/tiny", "some/one")
    (offline,), quiet = load(endpoint, "someone/tiny")
    line = f"downloading someone/tiny from {endpoint}: {size / 1e6:,.1f} MB, licence mit\n"
    assert line in errors
    assert (errors + quiet).count("downloading") == 1
    assert first == again == offline == "0"  # the tokenizer's pad token, not the config's
    assert wrong.startswith("name_or_path is 'some/one'; expected a model on the hub or a local")
