"""Draws the figures of the three systems: `python docs/figures/draw.py` writes the SVGs beside it.

Only the standard library is needed. A text that may not fit its box is an error.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

# fill and line of each kind of box
COLOURS = {
    "image": ("#dbeafe", "#1d4ed8"),
    "text": ("#dcfce7", "#15803d"),
    "pair": ("#fef3c7", "#b45309"),
    "loss": ("#fee2e2", "#b91c1c"),
    "other": ("#f1f5f9", "#475569"),
}
KINDS = {"image": "image side", "text": "text side", "pair": "pairs", "loss": "loss"}
INK, GREY = "#0f172a", "#334155"
TITLE, DETAIL, NOTE = 13.0, 12.0, 11.5  # font sizes
LINE = 16.0

Point = tuple[float, float]


class Box:
    """A rectangle with centred lines of text, and the points arrows start and end at."""

    def __init__(self, x: float, y: float, width: float, height: float) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height

    def left(self, at: float = 0.5) -> Point:
        """A point of the left edge, ``at`` of the way down."""
        return self.x, self.y + at * self.height

    def right(self, at: float = 0.5) -> Point:
        """A point of the right edge, ``at`` of the way down."""
        return self.x + self.width, self.y + at * self.height

    def top(self, at: float = 0.5) -> Point:
        """A point of the upper edge, ``at`` of the way to the right."""
        return self.x + at * self.width, self.y

    def bottom(self, at: float = 0.5) -> Point:
        """A point of the lower edge, ``at`` of the way to the right."""
        return self.x + at * self.width, self.y + self.height


class Figure:
    """Boxes, arrows and words on a white sheet, as an SVG."""

    def __init__(self, title: str, width: int, height: int) -> None:
        self.title, self.width, self.height = title, width, height
        self.parts: list[str] = []
        x, y = 24.0, height - 26.0
        for kind, name in KINDS.items():
            fill, line = COLOURS[kind]
            self.parts.append(
                f'<rect x="{_n(x)}" y="{_n(y)}" width="14" height="14" rx="3" fill="{fill}" '
                f'stroke="{line}"/>'
            )
            self.words(x + 20, y + 11, name, anchor="start")
            x += 36 + _text_width(name, NOTE)

    def box(
        self,
        kind: str,
        x: float,
        y: float,
        width: float,
        text: str,
        dashed: bool = False,
    ) -> Box:
        """A box as high as its lines need; they are parted by " | ", the first is bold."""
        lines = text.split(" | ")
        height = 14 + LINE * len(lines)
        fill, line = COLOURS[kind]
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="7" '
            f'fill="{fill}" stroke="{line}" stroke-width="1.4"{dash}/>'
        )
        for number, line_text in enumerate(lines):
            bold = number == 0
            size = TITLE if bold else DETAIL
            if _text_width(line_text, size, bold) > width - 8:
                raise ValueError(f"{line_text!r} is wider than its box of {width}")
            self._text(x + width / 2, y + 19.5 + LINE * number, line_text, size, bold=bold)
        return Box(x, y, width, height)

    def arrow(self, *points: Point) -> None:
        """A line through the points, with an arrow head at the last."""
        path = "M" + " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.4" '
            'marker-end="url(#head)"/>'
        )

    def words(
        self, x: float, y: float, text: str, anchor: str = "middle", bold: bool = False
    ) -> None:
        """A line of text outside of boxes, at its baseline."""
        width = _text_width(text, NOTE, bold)
        start = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        if start < 4 or start + width > self.width - 4:
            raise ValueError(f"{text!r} leaves the sheet")
        self._text(x, y, text, NOTE, bold=bold, anchor=anchor, colour=GREY)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        """A thin frame around things that belong together."""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="9" '
            f'fill="none" stroke="#94a3b8" stroke-width="1"/>'
        )

    def svg(self) -> str:
        """The figure as the text of an SVG file."""
        title = escape(self.title)
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-label="{title}" '
            "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">",
            f"<title>{title}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z" fill="{GREY}"/>'
            "</marker></defs>",
            f'<rect width="{self.width}" height="{self.height}" rx="14" fill="#ffffff"/>',
        ]
        return "\n".join([*head, *self.parts, "</svg>"]) + "\n"

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        bold: bool = False,
        anchor: str = "middle",
        colour: str = INK,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" text-anchor="{anchor}" '
            f'fill="{colour}"{weight}>{escape(text, quote=False)}</text>'
        )


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _text_width(text: str, size: float, bold: bool = False) -> float:
    """A little more than the width in DejaVu Sans, the widest of the fonts asked for."""
    ems = 0.0
    for character in text:
        if character in " .,:;|()[]'′ilIjtfr/-":
            ems += 0.4
        elif character in "mwMW":
            ems += 0.98
        elif character.isupper() or character in "+×−=≥←⊙":
            ems += 0.84
        else:
            ems += 0.63
    return ems * size * (1.1 if bold else 1.0)


def mate() -> Figure:
    """MATE: a global branch, a fusion branch, a teacher, four losses."""
    figure = Figure("MATE: global branch, fusion branch, momentum teacher", 1000, 640)
    box, arrow, words = figure.box, figure.arrow, figure.words

    images = box("image", 40, 24, 230, "Images | B: pixels or features")
    captions = box("text", 730, 24, 230, "Captions | K an image: B·K × L word ids")
    image_encoder = box("image", 40, 128, 230, "Image encoder | tokens B × N × D")
    text_encoder = box("text", 730, 128, 230, "Text encoder | words B·K × L × D")
    image_pool = box(
        "image", 40, 246, 230, "ESA pooling, K views | over tokens, per channel | v: B·K × D"
    )
    text_pool = box("text", 730, 246, 230, "ESA pooling | over words, per channel | t: B·K × D")
    learnt = "Momentum teacher (training only) | moving average of encoders and pools"
    teacher = box(
        "other", 330, 16, 340, f"{learnt} | v′, t′: B·K × D, and a queue: Q × D", dashed=True
    )
    triplet = box("loss", 318, 128, 114, "triplet | all of S")
    hect = box("loss", 443, 128, 114, "hect | v and t")
    distillation = box("loss", 568, 128, 114, "distillation | v, t; v′, t′")
    cosines = "Global scores | S = cosines of v and t"
    scores = box("pair", 330, 246, 340, f"{cosines} | B·K × B·K in training, else n × m")
    sequence = "Fusion encoder, one pair at a time | sequence: v, t, image tokens, words"
    shape = "(2 + N + L) × D a pair"
    fusion = box("pair", 330, 374, 340, f"{sequence} | {shape} | read out at v and t")
    read = "Pair score g | cosine of the read-outs,"
    pair = box("pair", 370, 508, 260, f"{read} | or logit of a matching head")
    fusion_loss = box(
        "loss", 40, 508, 254, "fusion | g of true pairs against | g of the hardest wrong pairs"
    )
    ranking = box(
        "pair", 706, 508, 254, "Ranking | order of S; the best k again | by (1 − w) · S + w · g"
    )

    arrow(images.right(), teacher.left())
    arrow(captions.left(), teacher.right())
    arrow(images.bottom(), image_encoder.top())
    arrow(captions.bottom(), text_encoder.top())
    arrow(image_encoder.bottom(), image_pool.top())
    arrow(text_encoder.bottom(), text_pool.top())
    arrow(image_pool.right(), scores.left())
    arrow(text_pool.left(), scores.right())
    words(300, 271, "v")
    words(700, 271, "t")
    arrow((625, 78), (625, 128))
    words(634, 108, "v′, t′, queue", anchor="start")
    for loss in (triplet, hect, distillation):
        x, y = loss.bottom()
        arrow((x, scores.y), (x, y))
    words(508, 214, "S, v and t", anchor="start")
    arrow(scores.bottom(), fusion.top())
    words(508, 336, "which pairs: the hardest", anchor="start")
    words(508, 352, "(training), the best k (ranking)", anchor="start")
    # tokens take the outer lanes, past the pooling
    arrow(image_encoder.left(), (20, 151), (20, 428), fusion.left(54 / 78))
    arrow(text_encoder.right(), (980, 151), (980, 428), fusion.right(54 / 78))
    arrow(image_pool.bottom(), (155, 396), fusion.left(22 / 78))
    arrow(text_pool.bottom(), (845, 396), fusion.right(22 / 78))
    words(240, 389, "v")
    words(760, 389, "t")
    words(240, 445, "image tokens")
    words(760, 445, "words")
    arrow(fusion.bottom(), pair.top())
    arrow(pair.left(), fusion_loss.right())
    arrow(pair.right(), ranking.left())
    words(976, 625, "loss = weighted sum of triplet, hect, distillation and fusion", anchor="end")
    return figure


def daim() -> Figure:
    """DAIM: three levels, features kept apart, a margin that follows the scores."""
    figure = Figure("DAIM: matching on three levels with an adaptive margin", 1000, 700)
    box, arrow, words = figure.box, figure.arrow, figure.words

    pixels = box("image", 24, 24, 160, "Images | n × 3 × 224 × 224")
    ids = box("text", 816, 24, 160, "Captions | m × L word ids")
    first = box("image", 24, 98, 160, "Swin stage 1")
    stages, layers = [], []
    tokens = ((784, 256), (196, 512), (49, 1024))
    for level, (count, width) in enumerate(tokens):
        y = 160 + 92 * level
        stage = box(
            "image",
            24,
            y,
            160,
            f"Swin stage {level + 2} | n × {count} × {width} | ContraNorm in blocks",
        )
        names = ("1 to 4", "5 to 10", "11 and 12")
        layer = box("text", 816, y, 160, f"BERT {names[level]} | m × L × 768 | ContraNorm optional")
        image = box("image", 222, y, 180, f"ContraNorm | LayerNorm, Linear | v: n × {count} × 768")
        text = box("text", 598, y, 180, "Linear | ContraNorm optional | t: m × L × 768")
        score = box("pair", 436, y, 128, "Cross-attention | cosines | n × m")
        arrow(stage.right(), image.left())
        arrow(image.right(), score.left())
        arrow(layer.left(), text.right())
        arrow(text.left(), score.right())
        if level:
            arrow(stages[-1].bottom(), stage.top())
            arrow(layers[-1].bottom(), layer.top())
        stages.append(stage)
        layers.append(layer)
    arrow(pixels.bottom(), first.top())
    arrow(first.bottom(), stages[0].top())
    arrow(ids.bottom(), layers[0].top())
    words(500, 110, "three levels, from parts to the whole scene;", bold=True)
    words(500, 127, "each word looks for its regions", bold=True)
    for y in (222, 314):
        arrow((500, y), (500, y + 30))
        words(510, y + 19, "+", anchor="start", bold=True)
    total = box("pair", 420, 446, 160, "S = sum of levels | n × m")
    arrow((500, 406), total.top())
    words(510, 430, "+", anchor="start", bold=True)
    loss = box("loss", 420, 588, 160, "loss | hinge, this margin, | hardest negatives")
    arrow(total.bottom(), loss.top())

    # where the feature discriminability stands in a block
    figure.frame(24, 446, 364, 204)
    words(206, 466, "Inside every Swin block", bold=True)
    attention = box("image", 36, 480, 104, "x + attn(x) | in windows")
    middle = box("image", 154, 480, 104, "ContraNorm | whole sample")
    mlp = box("image", 272, 480, 104, "y + MLP(y) | after a norm")
    arrow(attention.right(), middle.left())
    arrow(middle.right(), mlp.left())
    words(206, 556, "ContraNorm: each token loses a share of the")
    words(206, 574, "mean of the tokens that resemble it,")
    words(206, 600, "y = (1 + s) x − s · softmax(cos(x, x) / t) · x", bold=True)
    words(206, 626, "s = 0.1, t = 1; padding takes no part")

    # the loop of the margin
    fit = box(
        "loss",
        640,
        438,
        336,
        "Where do positives and negatives cross? | "
        "rows whose positive is the largest: | target: where two Gaussians cross",
    )
    margin = box(
        "loss",
        640,
        588,
        336,
        "Margin, a buffer | 0.9 · margin + 0.1 · target, before | the hinge; starts from 0.2",
    )
    arrow(total.right(), fit.left())
    arrow(fit.bottom(0.3), margin.top(0.3))
    words(752, 548, "target", anchor="start")
    arrow(margin.top(0.85), fit.bottom(0.85))
    words(916, 548, "margin", anchor="end")
    arrow(margin.left(), loss.right())
    words(976, 685, "the sum of the levels is the score; n = m in training", anchor="end")
    return figure


def tvrn() -> Figure:
    """TVRN: image and caption refined by each other, then compared."""
    figure = Figure("TVRN: regions refined by relations, words by the image", 1000, 770)
    box, arrow, words = figure.box, figure.arrow, figure.words

    regions = box("image", 36, 24, 160, "Regions | v: n × N × D")
    boxes = box("image", 216, 24, 160, "Boxes | IoU ≥ 0.2: n × N × N")
    captions = box("text", 716, 24, 244, "Words | t: m × L × D")
    semantic = box("image", 36, 112, 160, "Semantic | rel = attend(v, v) | n × N × D")
    geometric = box("image", 216, 112, 160, "Geometric | pos, from the boxes | n × N × D")
    own = box("text", 716, 112, 244, "Words among themselves | self = attend(t, t) | m × L × D")
    context = box("image", 36, 216, 340, "Context of every region | con = l2(rel + pos): n × N × D")
    visual = box(
        "pair", 412, 208, 250, "Words look at this image | vis = attend(self, con) | n × m × L × D"
    )
    image_gru = box(
        "image",
        36,
        312,
        340,
        "GRU over v, then new | new = l2(LeakyReLU(v ⊙ con)) | plus v, then l2: n × 2N × D",
    )
    first = box(
        "text",
        716,
        312,
        244,
        "GRU, first part: over t | once a caption: m × L × D | its last state: m × D",
    )
    second = box(
        "pair",
        412,
        312,
        250,
        "GRU, second part: over vis | goes on from that state | n × m × L × D",
    )
    refined_image = box(
        "image", 36, 424, 340, "Refined image | v′: n × 2N × D | guided pooling: n × D"
    )
    refined_text = box(
        "pair",
        412,
        424,
        250,
        "Refined words of this pair | t′: n × m × 2L × D | guided pooling: n × m × D",
    )
    comparison = box(
        "pair",
        330,
        536,
        340,
        "Comparison vectors | word and what it finds in v′: 2L | "
        "whole caption and whole image: 1 | n × m × (1 + 2L) × 256",
    )
    reasoning = box(
        "pair", 330, 664, 340, "Graph reasoning (SGR) or filtration (SAF) | logit: n × m"
    )
    ranking = box("pair", 36, 664, 230, "Ranking | by the logits")
    loss = box("loss", 734, 664, 226, "loss | cross-entropy of hinge costs")

    arrow(regions.bottom(), semantic.top())
    arrow(regions.bottom(0.8), (164, 91), (258, 91), geometric.top(42 / 160))
    arrow(boxes.bottom(0.6), geometric.top(0.6))
    arrow(semantic.bottom(), context.top(80 / 340))
    arrow(geometric.bottom(), context.top(260 / 340))
    arrow(context.right(), visual.left())
    words(394, 231, "con")
    arrow(captions.bottom(), own.top())
    arrow(own.bottom(), (838, 239), visual.right())
    words(690, 231, "self")
    arrow(context.bottom(), image_gru.top())
    arrow(regions.left(), (18, 47), (18, 343), image_gru.left())
    arrow(captions.right(), (980, 47), (980, 343), first.right())
    arrow(visual.bottom(), second.top())
    words(546, 296, "vis", anchor="start")
    arrow(first.left(), second.right())
    words(689, 335, "state")
    arrow(image_gru.bottom(), refined_image.top())
    arrow(second.bottom(), refined_text.top())
    words(546, 404, "last L words", anchor="start")
    arrow(first.bottom(), (838, 455), refined_text.right())
    words(750, 447, "first L words")
    arrow(refined_text.bottom(), (537, 536))
    arrow(refined_image.bottom(), (206, 575), comparison.left())
    arrow(comparison.bottom(), reasoning.top())
    arrow(reasoning.left(), ranking.right())
    arrow(reasoning.right(), loss.left())
    words(702, 680, "sigmoid")
    words(976, 755, "n images, m captions, n · m pairs; n = m in training", anchor="end")
    return figure


FIGURES = {"mate": mate, "daim": daim, "tvrn": tvrn}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(
            draw().svg(), encoding="utf-8", newline="\n"
        )
