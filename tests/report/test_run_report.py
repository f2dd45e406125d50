"""The report of a run: one file, whole, that needs no other; in a browser without a fault."""

from __future__ import annotations

import io
import math
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import browser, contrast_faults, opened
from tiny_runs import runs, write_config

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.metrics.functional import cross_modal_recall
from itmkit.report.evaluated import EvaluatedRun, curves_of
from itmkit.report.run_report import write_report
from tests.retriever.conftest import feature_run, photos  # noqa: F401

pytestmark = pytest.mark.extras
pytest.importorskip("matplotlib", reason="needs itmkit[report]")


@pytest.fixture(scope="module", autouse=True)
def _one_map() -> Iterator[None]:
    """Explain one pair of each report: drawing takes most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("itmkit.report.run_report.MAPS", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of DAIM, whose margin adapts, and one of MATE on the same scenes."""
    found = []
    for system in ("DAIM", "MATE"):
        folder = tmp_path_factory.mktemp(system)
        config = write_config(folder, system, val=60, max_steps=4, max_epochs=1)
        main(["fit", f"--config={config}", f"--trainer.default_root_dir={folder / 'runs'}"])
        found += runs(folder)
    return found


@pytest.fixture(scope="module")
def report_page(trained: list[Path]) -> Path:
    daim, mate = map(str, trained)
    main(["report", daim, mate, "--device=cpu"])
    return trained[0] / "report.html"


def test_numbers_are_those_of_the_scores(trained: list[Path]) -> None:
    own = EvaluatedRun.of(trained[1], "val")
    gallery, scores = own.table.gallery, own.table.scores
    expected = cross_modal_recall(
        scores, gallery.image_ids, gallery.text_image_ids, relevance=own.relevant
    )
    assert own.recall == pytest.approx(expected)
    right, wrong = own.positives, own.negatives
    for column in (0, 7, 299):
        true = [float(scores[r, column]) for r in range(60) if own.relevant[r, column]]
        false = [float(scores[r, column]) for r in range(60) if not own.relevant[r, column]]
        assert (float(right[1][column]), float(wrong[1][column])) == (max(true), max(false))
    assert (own.query_ranks[1] == own.ranks[0].t2i).all()


def test_explanations_of_the_report_are_of_its_scores(trained: list[Path]) -> None:
    own = EvaluatedRun.of(trained[0], "val")
    (explanation,), boxes = own.explained(3, 11)
    assert explanation.score == pytest.approx(float(own.table.scores[3, 11]), abs=1e-5)
    assert boxes is None


def test_page_is_whole_and_needs_nothing_else(report_page: Path) -> None:
    text = report_page.read_text()
    assert len(text) < 2_000_000
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text.partition("<pre")[0])
    for title in ("Recall", "Adaptive margin", "Calibration", "Why pairs have their score"):
        assert title in text
    for part in ("Second run", "Configuration that differs", "itmkit report", "95 % interval"):
        assert part in text
    assert text.count("<svg") >= 7
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_curves(trained: list[Path]) -> None:
    curves = curves_of(trained[0])
    steps, values = curves["train/margin"]
    assert len(steps) == len(values) > 1
    assert curves_of(trained[0] / "nowhere") == {}


def test_files_of_a_stopped_run(trained: list[Path], tmp_path: Path) -> None:
    """A line of metrics.csv that was cut, and an empty environment.yaml, do not matter."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,1,0.5\n0,2,1.2e-")
    (run / "environment.yaml").write_text("")
    assert curves_of(run) == {"train/loss": ([1], [0.5])}
    assert "Recall" in write_report(run, tmp_path / "new/page.html").read_text()


def test_protocol_of_several_folds(trained: list[Path], tmp_path: Path) -> None:
    run, page = trained[1], tmp_path / "page.html"
    main(["report", str(run), "--protocol=3", f"--output={page}", "--device=cpu"])
    text = page.read_text()
    assert "Protocol: 3 folds. Recall is the mean over them" in text
    assert f"itmkit report {run} --split val --protocol 3" in text
    own = EvaluatedRun.of(run, "val", protocol=3)
    gallery, scores = own.table.gallery, own.table.scores
    folds = []
    for start in range(0, 60, 20):
        images = torch.arange(start, start + 20)
        texts = torch.isin(gallery.text_image_ids, gallery.image_ids[images]).nonzero()[:, 0]
        ids = gallery.image_ids[images], gallery.text_image_ids[texts]
        folds.append(
            cross_modal_recall(
                scores[images][:, texts], *ids, relevance=own.relevant[images][:, texts]
            )
        )
    assert own.recall["t2i_r1"] == pytest.approx(sum(fold["t2i_r1"] for fold in folds) / 3)
    with pytest.raises(InputError, match="folds is 7; expected a divisor of the 60 images"):
        EvaluatedRun.of(run, "val", protocol=7)
    with pytest.raises(InputError, match="protocol is 'cxc', whose judgements a report does not"):
        EvaluatedRun.of(run, "val", protocol="cxc")


def test_stored_features_with_and_without_photos(
    feature_run: Path,  # noqa: F811
    photos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    told = "The run knows stored features alone"
    text = write_report(feature_run, tmp_path / "page.html").read_text()
    assert told in text
    assert "data:image" not in text
    with pytest.raises(FileNotFoundError, match=r"6.jpg is missing, one of 2 missing images"):
        EvaluatedRun.of(feature_run, "val", photos=tmp_path)
    main(["report", str(feature_run), f"--photos={photos / 'images'}", "--device=cpu"])
    text = (feature_run / "report.html").read_text()
    assert told not in text
    assert text.count("data:image/webp") > 4
    assert "Why pairs have their score" in text
    assert f"--photos {photos / 'images'}" in text

    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("6.jpg", "7.jpg"):
            content = (photos / "images" / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content) if name == "6.jpg" else 99  # the other one is cut short
            tar.addfile(info, io.BytesIO(content))
    own = EvaluatedRun.of(feature_run, "val", photos=tmp_path / "photos.tar")
    readable = {own.name(row): own.picture(row) is not None for row in range(2)}
    assert readable == {"6.jpg": True, "7.jpg": False}
    write_report(feature_run, tmp_path / "page.html", photos=tmp_path / "photos.tar")


def test_training_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, "DAIM", val=9, max_steps=2, max_epochs=1)
    words = [f"--config={config}", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    main(["fit", *words, "--report=true"])
    (run,) = runs(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {run / 'report.html'}"
    assert "Adaptive margin" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("matplotlib is not installed: pip install 'itmkit[report]'"), "matplotlib is"),
        (ZeroDivisionError(), "ZeroDivisionError, which itmkit report runs/a shows"),
    ],
)
def test_training_does_not_fail_with_its_report(
    error: Exception,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from itmkit.cli.report import report_of_training

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("itmkit.report.run_report.write_report", fails)
    report_of_training(Path("runs/a"), torch.device("cpu"))
    assert capsys.readouterr().out.startswith(f"no report: {line}")


def test_a_path_that_cannot_be_written_is_refused_before_the_run_is_evaluated(
    trained: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(EvaluatedRun, "of", None)
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path, f"output is '{tmp_path}', a folder; expected the path of a file"),
        (tmp_path / "file/page.html", "File exists"),
    ):
        with pytest.raises(SystemExit):
            main(["report", str(trained[0]), f"--output={output}", "--device=cpu"])
        assert message in capsys.readouterr().err


def test_second_run_on_other_scenes_is_refused(trained: list[Path], tmp_path: Path) -> None:
    config = write_config(tmp_path, "DAIM", val=9, max_steps=1, max_epochs=1)
    main(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    target = tmp_path / "page.html"
    with pytest.raises(InputError, match="evaluated on other images or captions"):
        write_report(trained[0], target, other=runs(tmp_path)[0])
    assert not target.exists()


def test_hubs_wrong_pairs_and_ranks_of_a_known_table(
    trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from itmkit.report import run_charts, run_report

    own = EvaluatedRun.of(trained[0], "val")
    scores = torch.zeros_like(own.table.scores)
    scores[5] = 1.0  # an image that is found for every caption
    scores[:, 20] += 0.5
    own.table.scores = scores
    counts = run_charts.top_counts(scores, dim=0)
    assert int(counts.argmax()) == 5
    assert int(counts[5]) == 300
    drawn: dict[str, Any] = {}
    lines = run_charts.charts.lines
    monkeypatch.setattr(
        run_charts.charts,
        "lines",
        lambda *args, **axes: drawn.update(args[2]) or lines(*args, **axes),
    )
    run_charts.score_charts(own)
    levels, chance = drawn["text to image by chance"]
    matches = own.relevant.sum(0).tolist()
    assert max(matches) > 1
    for level, percent in zip(levels, chance, strict=True):
        missed = [
            math.prod((60 - count - place) / (60 - place) for place in range(min(level, 60)))
            for count in matches
        ]
        assert percent == pytest.approx(100 - 100 * sum(missed) / len(missed))
    (first, *_) = run_report._wrong_pairs(own, run_report._Pictures(own))
    assert first["name"] == own.name(5)
    assert first["text"] == own.caption(20)
    assert first["score"] == 1.5


def test_a_large_gallery_is_cut_to_its_first_images(
    trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itmkit.report.evaluated.MOST_SCORES", 20 * 300)
    own = EvaluatedRun.of(trained[0], "val")
    assert own.whole == 60
    assert own.table.scores.shape == (20, 100)
    assert set(own.table.gallery.text_image_ids.tolist()) == set(range(20))


def test_pictures_end_with_their_budget(
    trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from itmkit.report import run_report

    own = EvaluatedRun.of(trained[0], "val")
    first = run_report._Pictures(own)(0)
    assert first is not None
    monkeypatch.setattr(run_report, "BUDGET", len(first) + 1)
    pictures = run_report._Pictures(own)
    assert pictures(0) == first
    assert pictures(0) is None


def test_changes_between_two_runs(trained: list[Path]) -> None:
    from itmkit.report import run_report

    own, second = (EvaluatedRun.of(run, "val") for run in trained)
    ranks, before = torch.tensor([0, 0, 3, 5, 0]), torch.tensor([4, 2, 0, 9, 0])
    for run, captions in ((own, ranks), (second, before)):
        run.query_ranks = (run.query_ranks[0], captions)
    found = run_report._changes(own, second)
    assert (found["won"], found["lost"]) == (2, 1)
    assert [(one["ours"], one["theirs"]) for one in found["better"]] == [(1, 5), (6, 10), (1, 3)]
    assert [(one["ours"], one["theirs"]) for one in found["worse"]] == [(4, 1)]
    for row in run_report._recall_rows(own, second):
        assert row["change"] == own.recall[row["key"]] - second.recall[row["key"]]


def test_queries_have_their_ranks(trained: list[Path]) -> None:
    from itmkit.report import run_report

    own = EvaluatedRun.of(trained[0], "val")
    found = run_report._queries(own, run_report._Pictures(own))
    worst = [one["rank"] for one in found if one["side"] == "t2i" and one["kind"] == "worst"]
    assert worst[0] == int(own.query_ranks[1].max()) + 1
    assert {one["rank"] for one in found if one["kind"] == "best"} == {1}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_filters_and_orders_in_a_browser(
    chromium: Any, report_page: Path, scheme: str, width: int
) -> None:
    """Opens from disk without a network or a fault; contrast is enough."""
    with opened(chromium, report_page, scheme=scheme, width=width) as tab:
        rows, shown = tab.locator(".query-row"), tab.locator(".query-row:visible")
        count = rows.count()
        assert tab.locator("#count").text_content() == f"{count} of {count} queries"
        tab.get_by_label("Direction").select_option("i2t")
        assert 0 < shown.count() < count
        assert {row.get_attribute("data-side") for row in shown.all()} == {"i2t"}
        tab.get_by_label("Show").select_option("worst")
        assert {row.get_attribute("data-kind") for row in shown.all()} == {"worst"}
        tab.get_by_label("Show").select_option("")
        for order, sign in (("rank", 1), ("-rank", -1)):
            tab.get_by_label("Order").select_option(order)
            ranks = [int(row.get_attribute("data-rank")) for row in shown.all()]
            assert ranks == sorted(ranks, key=lambda rank: sign * rank)
        assert len(set(ranks)) > 1
        tab.get_by_label("Direction").select_option("")
        word = rows.first.locator("h3").text_content().split()[1]
        tab.get_by_label("Words").fill(word.upper())
        assert 0 < shown.count() <= count
        assert all(word in row.text_content() for row in shown.all())
        tab.get_by_label("Words").fill("no such words")
        assert shown.count() == 0
        assert contrast_faults(tab) == []


def test_keyboard_alone(chromium: Any, report_page: Path) -> None:
    with opened(chromium, report_page, scheme="dark", width=390) as tab:

        def go_to(expression: str) -> None:
            """Tab on until an expression on the focused element is true."""
            for _ in range(80):
                tab.keyboard.press("Tab")
                if tab.evaluate(f"() => ((one) => {expression})(document.activeElement)"):
                    return
            raise AssertionError(f"{expression} is not reached")

        go_to("one.id === 'words'")
        tab.keyboard.type("no such words")
        assert tab.locator("#count").text_content().startswith("0 of ")
        tab.keyboard.press("ControlOrMeta+a")
        tab.keyboard.press("Delete")
        go_to("one.id === 'kind'")
        tab.keyboard.press("ArrowDown")
        kinds = [row.get_attribute("data-kind") for row in tab.locator(".query-row:visible").all()]
        assert set(kinds) == {"worst"}
        go_to("one.matches('.sortable button') && one.textContent === 'Score'")
        head = tab.locator(".sortable th", has_text="Score").first
        cells = tab.locator(".sortable tbody tr td:nth-child(3)")
        for place, score in enumerate(("-0.250", "-0.500", "-10.000")):
            cells.nth(place).evaluate(f"(one) => {{ one.textContent = '{score}' }}")
        for key, order in (("Enter", "ascending"), ("Space", "descending")):
            tab.keyboard.press(key)
            assert head.get_attribute("aria-sort") == order
            numbers = [float(text) for text in cells.all_text_contents()]
            assert numbers == sorted(numbers, reverse=order == "descending")
        assert numbers[0] > numbers[-1]
        closed = "one.tagName === 'SUMMARY' && !one.parentNode.open"
        go_to(closed)
        tab.keyboard.press("Enter")
        assert not tab.evaluate(f"() => ((one) => {closed})(document.activeElement)")
        picture = tab.locator("details[open] img.map").last
        assert picture.evaluate("(one) => one.naturalWidth") > 300
