"""Explanations as pictures: of pixels and of boxes, with words that a reader knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from itmkit import Retriever
from itmkit.checks import InputError
from itmkit.data import Preprocessing, Vocabulary, WordTokenizer
from itmkit.nn import BagOfWords, RegionProjection, TimmGrid
from itmkit.report.explain import caption_words, draw_explanations
from itmkit.systems import DAIM
from itmkit.systems.explanation import Explanation, TokenMap

pytestmark = pytest.mark.extras
pytest.importorskip("matplotlib", reason="needs itmkit[report]")


@pytest.fixture
def retriever() -> Retriever:
    torch.manual_seed(0)
    words = Vocabulary.build(["a red dog"], min_count=1)
    model = DAIM(TimmGrid("test_resnet", 8, image_size=64), BagOfWords(len(words), 8))
    return Retriever(model, WordTokenizer(words), Preprocessing(size=64))


def titles(axes: np.ndarray) -> list[str]:  # type: ignore[type-arg]
    return [one.get_title() for one in axes.flat if one.get_title()]


def test_retriever_draws_a_small_picture_a_word(retriever: Retriever, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    picture = Image.new("RGB", (90, 60), "teal")
    figure, axes = retriever.explain(picture, "A red dog", figure=Figure(layout="constrained"))
    assert axes.shape == (2, 5)
    names = [title.split("  ")[0] for title in titles(axes)]
    assert names == ["all words", "a", "red", "dog", "start, end"]
    numbers = [float(title.split("  ")[1]) for title in titles(axes)]
    (explanation,) = retriever.explanations(picture, "A red dog")
    assert numbers[0] == pytest.approx(explanation.score, abs=6e-4)
    assert sum(numbers[1:]) == pytest.approx(explanation.score, abs=3e-3)  # of rounded numbers
    assert explanation.maps[0].grid == (2, 2)
    figure.savefig(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 500


def test_a_figure_of_its_own_is_one_of_pyplot(retriever: Retriever) -> None:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    figure, _ = retriever.explain(Image.new("RGB", (64, 64)), "dog")
    assert pyplot.fignum_exists(figure.number)
    pyplot.close(figure)


def test_regions_have_boxes_and_grids_of_features_are_smooth() -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from itmkit.data.feature_file import grid_boxes

    words = caption_words(["dog"], [0])
    picture = np.zeros((20, 30, 3), np.uint8)
    values = torch.tensor([[0.5, -0.25, 0.0, 0.1]])
    found = [Explanation("shares", "score", [TokenMap(values)], 0.35)]
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0.2, 1, 1], [0, 0, 1, 1], [0.5, 0, 0.6, 0.1]])
    _, axes = draw_explanations(found, picture, words, boxes, figure=Figure())
    panel = axes[0, 2]
    assert panel.get_title() == "dog  +0.350"
    rectangles = [one for one in panel.patches if isinstance(one, Rectangle)]
    assert [round(one.get_width(), 2) for one in rectangles] == [
        0.1,
        0.8,
        0.5,
    ]  # the strongest last
    reds = [one.get_facecolor()[0] > 0.5 for one in rectangles]
    assert reds == [True, False, True]  # orange where a region adds, blue where it takes
    assert len(panel.images) == 1
    _, axes = draw_explanations(found, picture, words, grid_boxes(2, 2), figure=Figure())
    assert len(axes[0, 2].images) == 2
    assert not axes[0, 2].patches
    overlay = axes[0, 2].images[1].get_array()
    assert overlay[0, 0, 0] > overlay[0, 0, 2]  # orange where it adds
    assert overlay[0, -1, 2] > overlay[0, -1, 0]  # blue where it takes
    with pytest.raises(InputError, match="boxes is None for 4 image tokens of no grid"):
        draw_explanations(found, picture, words, figure=Figure())


@pytest.mark.parametrize(("count", "layout"), [(1, "constrained"), (12, None)])
def test_pictures_and_titles_have_places_of_their_own(count: int, layout: Any) -> None:
    from itertools import combinations

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words = caption_words(["dog"] * count, range(count))
    one = Explanation("shares", "score", [TokenMap(torch.ones(count, 4), (2, 2))], 4.0 * count)
    picture = np.zeros((8, 8, 3), np.uint8)
    figure, axes = draw_explanations([one, one], picture, words, figure=Figure(layout=layout))
    FigureCanvasAgg(figure).draw()
    used = [axis for axis in axes.flat if axis.images]
    assert len(used) == 2 * (count + 2)
    boxes = [axis.get_window_extent() for axis in used]
    boxes += [axis.title.get_window_extent() for axis in used if axis.get_title()]
    boxes += [part.texts[0].get_window_extent() for part in figure.subfigs]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_words_of_word_pieces(tmp_path: Path) -> None:
    from text_models import save_text_model

    from itmkit.data import TransformersTokenizer

    tokenizer = TransformersTokenizer(save_text_model(tmp_path))
    text = "A red dog, unbelievably!"
    caption = tokenizer.encode(text)
    found = caption_words(tokenizer.words(text), caption.words)
    assert sorted(token for word in found for token in word.tokens) == list(range(len(caption.ids)))
    assert {"red", "dog"} <= {word.text.lower() for word in found}


def test_without_a_picture_that_can_be_read(retriever: Retriever) -> None:
    with pytest.raises(InputError, match="image is"):
        retriever.explain(3, "dog")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"texts\[0\] is an int"):
        retriever.explain(Image.new("RGB", (9, 9)), 3)  # type: ignore[arg-type]


def test_projection_of_stored_regions_has_no_grid() -> None:
    from itmkit.systems.explanation import token_maps

    (own,) = token_maps([torch.zeros(2, 4)], RegionProjection(3, 8))
    assert own.grid is None


def test_a_word_with_dollars_is_no_formula() -> None:
    from matplotlib.figure import Figure

    explanation = Explanation("shares", "score", [TokenMap(torch.ones(1, 4), (2, 2))], 4.0)
    words = caption_words([r"$\foo$"], [0])
    picture = np.zeros((8, 8, 3), np.uint8)
    figure, axes = draw_explanations([explanation], picture, words, figure=Figure())
    figure.canvas.draw()
    assert r"$\foo$  +4.000" in titles(axes)


def test_grid_is_used_where_it_fits_the_tokens_and_for_every_level() -> None:
    from itmkit.systems.explanation import token_maps

    encoder = torch.nn.Identity()
    encoder.grid = (2, 3)  # type: ignore[assignment]
    found = token_maps([torch.zeros(2, 6), torch.zeros(2, 5), torch.zeros(2, 6)], encoder)
    assert [one.grid for one in found] == [(2, 3), None, (2, 3)]


def test_word_of_two_tokens_has_the_sum_of_shares_and_the_mean_of_attention() -> None:
    from itmkit.report.explain import _of_word

    own = TokenMap(torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]))
    (word,) = caption_words(["dog"], [0, 0])
    assert _of_word(own, word, shares=True).tolist() == [4.0, 2.0]
    assert _of_word(own, word, shares=False).tolist() == [2.0, 1.0]


def test_levels_count_alike_whatever_their_number_of_cells() -> None:
    from itmkit.report.explain import _layers

    levels = [(torch.full((4,), 1 / 4), (2, 2)), (torch.full((16,), 1 / 16), (4, 4))]
    assert _layers(levels, None).strongest == pytest.approx(2.0)


def test_boxes_of_a_grid_have_its_rows_and_columns() -> None:
    from itmkit.data.feature_file import grid_boxes
    from itmkit.report.explain import _grid_of

    assert _grid_of(grid_boxes(2, 3), 6) == (2, 3)
