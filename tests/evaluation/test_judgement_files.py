"""Judgements of MS-COCO from files of the real forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import save_picture
from score_table import Table, gallery

from itmkit.checks import InputError
from itmkit.data import CaptionedImages, Captions, KarpathyDataset
from itmkit.data.images import ImageSource
from itmkit.evaluation import judgement_files, read_judgements
from itmkit.metrics.functional import list_metrics
from itmkit.retrieval import evaluate

IMAGES = {365325: [11, 12], 391895: [21, 22], 60623: [31, 32]}
SITS = """\
caption,image,agg_score,sampling_method
COCO_val2014:sentid:11,COCO_val2014_000000391895.jpg,3.0,c2i_intrasim
COCO_val2014:sentid:21,COCO_val2014_000000365325.jpg,2.99,c2i_intrasim
COCO_val2014:sentid:11,COCO_val2014_000000365325.jpg,4.97,c2i_original
COCO_val2014:sentid:12,COCO_val2014_000000365325.jpg,5.0,c2i_original
COCO_val2014:sentid:12,COCO_val2014_000000365325.jpg,3.5,c2i_intrasim
COCO_val2014:sentid:21,COCO_val2014_000000391895.jpg,4.8,c2i_original
COCO_val2014:sentid:22,COCO_val2014_000000391895.jpg,2.47,c2i_original
COCO_val2014:sentid:31,COCO_val2014_000000060623.jpg,4.0,c2i_original
COCO_val2014:sentid:32,COCO_val2014_000000060623.jpg,4.52,c2i_original
"""
CXC = {(0, 0): 4.97, (0, 1): 5.0, (1, 0): 3.0, (1, 2): 4.8, (2, 4): 4.0, (2, 5): 4.52}
ECCV = {
    "image_to_caption": {"365325": [11, 12, 22], "60623": [31]},
    "caption_to_image": {"22": [365325, 391895], "31": [60623]},
}


def sentence(number: int) -> str:
    return f"A dog's caption, number {number}."


def karpathy(folder: Path) -> Path:
    """``dataset_coco.json`` with a training image before the test images, and their photos."""
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012}.jpg",
            "cocoid": number,
            "split": "test" if sentences else "train",
            "sentids": sentences,
            "sentences": [
                {"raw": sentence(one), "tokens": sentence(one).split(), "sentid": one}
                for one in sentences or [1]
            ],
        }
        for number, sentences in {5: [], **IMAGES}.items()
    ]
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    (folder / "val2014").mkdir()
    for number in IMAGES:
        save_picture(folder / f"val2014/COCO_val2014_{number:012}.jpg")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> KarpathyDataset:
    return KarpathyDataset("test", karpathy(tmp_path), tmp_path, image_size=8)


class Nothing(ImageSource):
    """Images that are never read."""

    names = ["0", "1", "2"]  # noqa: RUF012

    def image(self, row: int) -> torch.Tensor:
        raise NotImplementedError


def write_eccv(folder: Path, name: str = "eccv") -> Path:
    folder.mkdir(exist_ok=True)
    for aspect, content in ECCV.items():
        (folder / f"{name}_{aspect}.json").write_text(json.dumps(content))
    return folder


def as_dict(judged) -> dict[tuple[int, int], float]:
    grades = judged.grades.tolist()
    return {(i, j): grade for (i, j), grade in zip(judged.pairs.tolist(), grades, strict=True)}


def test_crisscrossed_captions(dataset: KarpathyDataset, tmp_path: Path) -> None:
    (tmp_path / "sits_test.csv").write_text(SITS)
    for files in (tmp_path / "sits_test.csv", [str(tmp_path)]):
        judged = read_judgements("cxc", dataset, files)
        assert as_dict(judged) == CXC
        assert judged.image_queries is judged.caption_queries is None
    # Caption 22 is not true enough of its own image, and true of no other: not a query.
    scores = torch.zeros(3, 6)
    for (image, caption), grade in CXC.items():
        scores[image, caption] = grade
    own = gallery(torch.arange(3).repeat_interleave(2), 3)
    assert evaluate(Table(scores), own, relevance=judged)["rsum"] == 600
    scores[0, 0] = 0  # image 0 still has caption 1; caption 0 still has image 1
    found = evaluate(Table(scores), own, relevance=judged)
    assert found["rsum"] == 600
    assert found["i2t_rprecision"] == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)


def test_eccv_caption(dataset: KarpathyDataset, tmp_path: Path) -> None:
    judged = read_judgements("eccv", dataset, write_eccv(tmp_path / "eccv"))
    assert sorted(judged.pairs.tolist()) == [[0, 0], [0, 1], [0, 3], [1, 3], [2, 4]]
    assert judged.grades is None
    assert (judged.image_queries.tolist(), judged.caption_queries.tolist()) == ([2, 0], [3, 4])


def test_crisscrossed_captions_of_the_package(dataset: KarpathyDataset, tmp_path: Path) -> None:
    judged = read_judgements("cxc", dataset, write_eccv(tmp_path / "eccv", "cxc"))
    assert judged.grades is None
    assert len(judged.pairs) == 5


def test_captions_without_ids_are_looked_up_by_their_words(
    dataset: KarpathyDataset, tmp_path: Path
) -> None:
    """As of precomputed features: no file names, and tokens in place of sentences."""
    words = [caption.lower().replace("'", " '").replace(",", " ,") for caption in dataset.captions]
    words[0], words[1] = words[1], words[0]
    plain = CaptionedImages(
        Captions("testall", Nothing.names, words, dataset.caption_images), Nothing()
    )
    table = tmp_path / "sits_test.csv"
    table.write_text(SITS)
    with pytest.raises(InputError, match="does not know the ids of its captions in MS-COCO; expec"):
        read_judgements("cxc", plain, table)
    judged = read_judgements("cxc", plain, [table, tmp_path / "dataset_coco.json"])
    turned = {0: 1, 1: 0}
    assert as_dict(judged) == {(i, turned.get(j, j)): grade for (i, j), grade in CXC.items()}
    words[2] = "a cat"
    other = CaptionedImages(
        Captions("testall", Nothing.names, words, dataset.caption_images), Nothing()
    )
    with pytest.raises(InputError, match=r"has no caption 'a cat' of the image 391895"):
        read_judgements("cxc", other, [table, tmp_path / "dataset_coco.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SITS.replace("3.0", "high"), r"sits_test.csv, line 2 is .*, 'high'; expected such as"),
        (SITS.replace("agg_score", "score"), "expected one of 'agg_score'"),
        (SITS.replace("000000391895", "000000000007"), "judges the image 7, which the split 'test"),
        (SITS.replace("4.97", "5.01"), "line 4 is .*, '5.01'; expected such as"),
        (SITS.replace("4.97", "nan"), "line 4 is .*, 'nan'; expected such as"),
        (SITS.replace("sentid:11", "sentid:" + "9" * 5000), "line 2 is 'COCO_val2014:sentid:999"),
        (SITS.replace("sentid:31", "sentid:99"), "judges 5 captions, of which .* not have 1, such"),
        (SITS.splitlines()[0] + "\na:1,b1.jpg,1.0,x", "has no rating of 3 or more"),
    ],
)
def test_tables_of_another_form(
    dataset: KarpathyDataset, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "sits_test.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_judgements("cxc", dataset, tmp_path / "sits_test.csv")


def test_files_that_do_not_belong_together(
    dataset: KarpathyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, pair = tmp_path / "sits_test.csv", write_eccv(tmp_path / "eccv")
    one = pair / "eccv_image_to_caption.json"
    table.write_text(SITS)
    bad = tmp_path / "eccv_caption_to_image.json"
    bad.write_text('{"a": [1]}')
    other = write_eccv(tmp_path / "cxc", "cxc")
    for name, files, message in [
        ("eccv", [table], "protocol_files has sits_test.csv for eccv; expected sits_test.csv alon"),
        ("cxc", [table, one], "protocol_files has sits_test.csv for cxc"),
        ("eccv", [one], "protocol_files has eccv_image_to_caption.json for eccv; expected eccv_im"),
        ("eccv", list(other.iterdir()), "protocol_files has cxc_.*json for eccv; expected eccv_im"),
        ("eccv", [tmp_path / "dataset_coco.json"], "protocol_files has no judgements of 'eccv'"),
        ("pm", [one], "protocol is 'pm'; expected one of 'cxc', 'eccv'"),
        ("eccv", [karpathy(pair), one, bad], "has 'a': .1.; expected ids with lists of ids"),
    ]:
        with pytest.raises(InputError, match=message):
            read_judgements(name, dataset, files)
    with pytest.raises(FileNotFoundError, match=r"no.json is missing; expected a file of the prot"):
        read_judgements("eccv", dataset, "no.json")
    monkeypatch.setattr(judgement_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'itmkit\[eccv\]'"):
        read_judgements("eccv", dataset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"eccv_image_to_caption.json holds no lists of ids; expected ids with lists of ids"),
        ('{"365325": []}', "holds no lists of ids"),
        ("[1]", "holds no lists of ids"),
        ('{"365325": "11"}', "has '365325': 11; expected ids"),
        ('{"365325": [11.7]}', r"has '365325': \[11.7\]; expected ids"),
        ('{"365325": [true]}', r"has '365325': \[True\]; expected ids"),
        ('{"365325": [Infinity]}', r"has '365325': \[inf\]; expected ids"),
        ('{"dog 7": [11]}', r"has 'dog 7': \[11\]; expected ids"),
        ('{"365325": [11', "^[^(]*eccv_image_to_caption.json is not JSON"),
    ],
)
def test_lists_of_another_form(
    dataset: KarpathyDataset, tmp_path: Path, content: str, message: str
) -> None:
    (write_eccv(tmp_path / "eccv") / "eccv_image_to_caption.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_judgements("eccv", dataset, tmp_path / "eccv")


@pytest.mark.long
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:failed to import `ujson`")
@pytest.mark.parametrize("name", ["eccv", "cxc"])
def test_the_package_gives_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the 5,000 images and 25,000 captions, with scores of chance and some knowledge."""
    eccv = pytest.importorskip("eccv_caption", reason="needs itmkit[eccv]")
    theirs = eccv.Metrics()
    images = list(dict.fromkeys(theirs.coco_gts["t2i"][one][0] for one in theirs.coco_ids.tolist()))
    captions = [one for image in images for one in theirs.coco_gts["i2t"][image]]
    names = [f"COCO_val2014_{image:012}.jpg" for image in images]
    monkeypatch.setattr(Nothing, "names", names)
    owners = torch.arange(5000).repeat_interleave(5)
    own = Captions("test", names, [str(one) for one in captions], owners, captions)
    judged = read_judgements(name, CaptionedImages(own, Nothing()))
    g = torch.Generator().manual_seed(0)
    image = torch.randn(5000, 12, generator=g)
    scores = image @ (image[owners] + 1.5 * torch.randn(25_000, 12, generator=g)).T
    found = evaluate(Table(scores), gallery(owners, 5000), relevance=judged, chunk_size=5000)
    if name == "eccv":
        # In fp64 nothing ties; in fp32 a few of 125 million scores do, and count against a query.
        matches = torch.zeros(5000, 25_000, dtype=torch.bool)
        matches[tuple(judged.pairs.T)] = True
        exact = {}
        for side, ids in (("i2t", "image_queries"), ("t2i", "caption_queries")):
            rows = getattr(judged, ids)
            table = scores if side == "i2t" else scores.T
            wanted = matches if side == "i2t" else matches.T
            for key, values in list_metrics(table[rows].double(), wanted[rows]).items().items():
                exact[f"{side}_{key}"] = 100 * values.mean().item()
                assert found[f"{side}_{key}"] == pytest.approx(exact[f"{side}_{key}"], abs=0.01)
        found |= exact
    best = scores.topk(60, dim=1).indices.numpy(), scores.topk(60, dim=0).indices.T.numpy()
    i2t = dict(zip(images, np.array(captions)[best[0]].tolist(), strict=True))
    t2i = dict(zip(captions, np.array(images)[best[1]].tolist(), strict=True))
    if name == "eccv":
        metrics = theirs.eccv_metrics({"i2t": i2t, "t2i": t2i}, "all")
        keys = {"eccv_r1": "r1", "eccv_rprecision": "rprecision", "eccv_map_at_r": "map_at_r"}
    else:
        metrics = theirs.compute_all_metrics(i2t, t2i, target_metrics=("cxc_recalls",))
        keys = {f"cxc_r{k}": f"r{k}" for k in (1, 5, 10)}
    for theirs_name, key in keys.items():
        for side in ("i2t", "t2i"):
            assert found[f"{side}_{key}"] == pytest.approx(100 * metrics[theirs_name][side]), key
