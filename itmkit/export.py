"""A matcher as ONNX files, which are kept only where they give what the matcher gives."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import itmkit
from itmkit.checks import InputError, type_of
from itmkit.data.batch import Images, Texts
from itmkit.extras import require_extra
from itmkit.files import sole_writer_beside, user_path, write_text
from itmkit.retrieval import Encoding
from itmkit.retrieval.encode import evaluating
from itmkit.systems.matcher import Matcher

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4
_TOP = 10


def require_onnx() -> None:
    """Raise :class:`~itmkit.checks.InputError` unless the packages of the extra are installed."""
    # older versions of onnxscript export a GRU wrongly
    require_extra("export", "onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.7.2")


def export_onnx(
    model: Matcher, examples: Iterable[tuple[Images, Texts]], folder: str | Path
) -> dict[str, Any]:
    """Write a matcher as ONNX files, with a certificate that they compute the same.

    ``image_encoder.onnx`` and ``text_encoder.onnx`` give the fields of an encoding, ``score.onnx``
    makes scores ``(n, m)`` of them, and ``rerank.onnx``, of a system with a second stage, scores
    ``(p,)`` of pairs ``(p, 2)`` of an image row and a caption row. The numbers of images, captions,
    regions and words are free.

    The files are run by onnxruntime on all examples, with other batch sizes, lengths and paddings
    than those that they were traced with. Every difference must be at most 1e-4 (of the largest
    value, where that is above 1), and the ten best of every query the same, but for scores that are
    closer than that. Else nothing is written.

    Args:
        model: in fp32, on the CPU.
        examples: batches of images and captions, at least 3 and 4 of them in the first batch.
        folder: new or empty; it is made.

    Returns:
        The certificate, as it is in ``certificate.json``.

    Raises:
        InputError: a package that is missing or too old, a model that is no matcher in fp32 on the
            CPU, a folder that holds files or is being written, examples that are too few or no
            pairs, or files that do not compute the same.
    """
    require_onnx()
    _check_model(model)
    batches = list(examples)
    for one in batches:
        if not isinstance(one, tuple) or list(map(type, one)) != [Images, Texts]:
            raise InputError(f"examples has {type_of(one)}; expected pairs (Images, Texts)")
    images, texts = (len(batches[0][0]), len(batches[0][1])) if batches else (0, 0)
    if images < 3 or texts < 4:
        raise InputError(
            f"examples has {images} images and {texts} captions in its first batch; expected 3 and "
            "4 at least"
        )
    with _new_folder(user_path(folder)) as work:
        with evaluating(model), torch.autocast("cpu", enabled=False), _quiet_optimizer():
            certificate = _Export(model, work).run(batches)
        write_text(work / CERTIFICATE, json.dumps(certificate, indent=2))
    return certificate


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to that takes its name at the end; after an error there is none."""
    target = target.resolve()  # of a link, the folder that it leads to
    work = target.with_name(f".{target.name}.part")
    with sole_writer_beside(target):
        try:
            if target.exists() and (target.is_file() or any(target.iterdir())):
                raise InputError(f"folder is '{target}', which holds files; expected a new folder")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            if target.exists():
                target.rmdir()
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_model(model: Matcher) -> None:
    if not isinstance(model, Matcher):
        raise InputError(f"model is {type_of(model)}; expected a Matcher")
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu" or tensor.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"model has {name} in {tensor.dtype} on {tensor.device}; expected a model in "
                "float32 on the CPU, such as model.float().cpu()"
            )


@contextmanager
def _quiet_optimizer() -> Iterator[None]:
    """Without the lines on what the optimizer of the ONNX files skips."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Part(nn.Module):
    """A function of a model as a module of tensors."""

    def __init__(self, model: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


class _Export:
    def __init__(self, model: Matcher, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.sessions: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.worst = 0.0

    def run(self, batches: Sequence[tuple[Images, Texts]]) -> dict[str, Any]:
        """Write the files, compare them, and say what was found."""
        model = self.model
        images, texts = _rows(batches[0][0], 3), _rows(batches[0][1], 4)
        image, text = model.encode_image(images), model.encode_text(texts)
        image_names, text_names = list(image.items()), list(text.items())

        def encode_image(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = Images(**dict(zip(_fields(images), tensors, strict=True)))
            return tuple(model.encode_image(given).items().values())

        def encode_text(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(_fields(texts), tensors, strict=True))
            ids = given.get("ids", given["mask"].long())
            return tuple(model.encode_text(Texts(**given | {"ids": ids})).items().values())

        def sides(tensors: tuple[Tensor, ...]) -> tuple[Encoding, Encoding]:
            split = len(image_names)
            return (
                Encoding(**dict(zip(image_names, tensors[:split], strict=True))),
                Encoding(**dict(zip(text_names, tensors[split:], strict=True))),
            )

        def score(*tensors: Tensor) -> tuple[Tensor, ...]:
            return (model.score(*sides(tensors)),)

        def rerank(*tensors: Tensor) -> tuple[Tensor, ...]:
            return (model.rerank(*sides(tensors[:-1]), tensors[-1]),)

        fields = [f"image_{name}" for name in image_names] + [f"text_{n}" for n in text_names]
        encoded = [*image.items().values(), *text.items().values()]
        self.write("image_encoder", encode_image, _fields(images), image_names)
        self.write("text_encoder", encode_text, _fields(texts), text_names)
        self.write("score", score, dict(zip(fields, encoded, strict=True)), ["scores"])
        if model.has_second_stage:
            pairs = torch.tensor([[0, 0], [0, 3], [1, 2], [2, 1], [2, 0]])
            inputs = dict(zip(fields, encoded, strict=True)) | {"pairs": pairs}
            self.write("rerank", rerank, inputs, ["scores"])
        checks = [self.compare(*case) for batch in batches for case in _cases(*batch)]
        gallery = self.compare_gallery(batches)
        return {
            "itmkit": itmkit.__version__,
            "torch": torch.__version__,
            "system": type(model).__name__,
            "tolerance": TOLERANCE,
            "largest_difference": self.worst,
            "files": self.files,
            "checks": checks,
            "gallery": gallery,
        }

    def write(
        self,
        name: str,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: dict[str, Tensor],
        outputs: list[str],
    ) -> None:
        """One file; batches are free, and so is every number of tokens."""
        import onnxruntime
        from onnxscript import opset18

        changing = tuple(
            {0: Dim.DYNAMIC}
            | {i: Dim.AUTO for i in range(1, tensor.ndim) if _is_length(key, tensor, i)}
            for key, tensor in inputs.items()
        )
        path = self.folder / f"{name}.onnx"
        names = [f"out_{one}" if one in inputs else one for one in outputs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Part(self.model, function),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes=(changing,),
                external_data=False,
                verbose=False,
                custom_translation_table={torch.ops.itmkit.gru.default: _onnx_gru(opset18)},
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.sessions[name] = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.files[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "inputs": {one.name: one.type for one in self.sessions[name].get_inputs()},
            "outputs": names,
        }

    def call(self, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        """What onnxruntime computes."""
        session = self.sessions[name]
        wanted = {one.name for one in session.get_inputs()}
        given = {key: value.numpy() for key, value in inputs.items() if key in wanted}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    def compare(self, what: str, images: Images, texts: Texts) -> dict[str, Any]:
        """The encodings of a batch, and their scores, by both."""
        before, self.worst = self.worst, 0.0
        image, text = self.encoded(images, texts)
        inputs = {f"image_{n}": v for n, v in image.items().items()}
        inputs |= {f"text_{n}": v for n, v in text.items().items()}
        (scores,) = self.call("score", inputs)
        self.check("score", scores, self.model.score(image, text))
        if "rerank" in self.sessions:
            rows = [[i, j] for i in range(len(image)) for j in range(len(text))]
            pairs = torch.tensor(rows[:: max(1, len(rows) // 64)])
            (found,) = self.call("rerank", inputs | {"pairs": pairs})
            self.check("rerank", found, self.model.rerank(image, text, pairs))
        found_here, self.worst = self.worst, max(before, self.worst)
        return {
            "what": what,
            "images": list(images.features.shape[:2]),
            "texts": list(texts.mask.shape),
            "largest_difference": found_here,
        }

    def encoded(self, images: Images, texts: Texts) -> tuple[Encoding, Encoding]:
        """Encodings by the files, checked against those of the model."""
        found = []
        for name, given, right in (
            ("image_encoder", images, self.model.encode_image(images).items()),
            ("text_encoder", texts, self.model.encode_text(texts).items()),
        ):
            values = dict(zip(right, self.call(name, _fields(given)), strict=True))
            for field, value in values.items():
                self.check(f"{name} {field}", value, right[field])
            found.append(Encoding(**values))
        return found[0], found[1]

    def check(self, what: str, found: Tensor, right: Tensor) -> None:
        """Raise unless the two agree."""
        if found.shape != right.shape:
            raise InputError(
                f"the ONNX file of {what} gives {tuple(found.shape)}, the model "
                f"{tuple(right.shape)}: nothing is written"
            )
        size = max(1.0, float(right.float().abs().amax())) if right.numel() else 1.0
        apart = float((found.float() - right.float()).abs().amax()) / size if right.numel() else 0
        if not apart <= TOLERANCE:
            raise InputError(
                f"the ONNX file of {what} differs from the model by {apart:.2g}; expected at most "
                f"{TOLERANCE}: nothing is written"
            )
        self.worst = max(self.worst, apart)

    def compare_gallery(self, batches: Sequence[tuple[Images, Texts]]) -> dict[str, Any]:
        """The ten best of every query among all examples, by both."""
        pairs = [self.encoded(*batch) for batch in batches]
        image, text = (Encoding.cat([pair[side] for pair in pairs]) for side in (0, 1))
        inputs = {f"image_{n}": v for n, v in image.items().items()}
        inputs |= {f"text_{n}": v for n, v in text.items().items()}
        (found,) = self.call("score", inputs)
        images = Encoding.cat([self.model.encode_image(batch[0]) for batch in batches])
        texts = Encoding.cat([self.model.encode_text(batch[1]) for batch in batches])
        right = self.model.score(images, texts)
        self.check("score of the gallery", found, right)
        for ours, theirs, query in ((found, right, "image"), (found.T, right.T, "caption")):
            check_best(ours, theirs, query)
        return {"images": len(image), "texts": len(text), "top": _TOP}


def check_best(found: Tensor, right: Tensor, query: str) -> None:
    """Raise unless the ten best of every row are the same, but for ties within the tolerance.

    Raises:
        InputError: with the row.
    """
    k = min(_TOP, right.shape[1])
    margin = TOLERANCE * max(1.0, float(right.abs().amax()))
    best = right.topk(k).values
    # What is chosen in place k must have, in the model, the score of its place k.
    chosen = right.gather(1, found.topk(k).indices)
    wrong = ((chosen - best).abs() > margin).any(1)
    if wrong.any():
        raise InputError(
            f"the ONNX files give other best of {query} {int(wrong.nonzero()[0])} than the model: "
            "nothing is written"
        )


def _onnx_gru(op: Any) -> Callable[..., Any]:
    """The operator ``itmkit::gru`` as ONNX's GRU, whose gates are in another order."""

    def gru(tokens: Any, state: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def ordered(weight: Any) -> Any:
            reset, update, new = op.Split(weight, num_outputs=3, axis=0)
            return op.Concat(update, reset, new, axis=0)

        first = op.Constant(value_ints=[0])
        states, _ = op.GRU(
            op.Transpose(tokens, perm=[1, 0, 2]),
            op.Unsqueeze(ordered(w_ih), first),
            op.Unsqueeze(ordered(w_hh), first),
            op.Unsqueeze(op.Concat(ordered(b_ih), ordered(b_hh), axis=0), first),
            None,
            op.Unsqueeze(state, first),
            hidden_size=w_hh.shape[1],
            linear_before_reset=1,
        )
        one = op.Constant(value_ints=[1])
        return op.Transpose(op.Squeeze(states, one), perm=[1, 0, 2])

    return gru


def _fields(part: Images | Texts) -> dict[str, Tensor]:
    """The tensors that a model is given."""
    names = ["features", "mask", "relations"]
    if isinstance(part, Texts):
        names = ["ids" if part.features is None else "features", "mask"]
    found = {name: getattr(part, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _is_length(name: str, tensor: Tensor, dim: int) -> bool:
    """Whether a dimension counts tokens."""
    if tensor.ndim == 4 or name == "pairs":
        return False
    return name == "relations" or (dim == 1 and (tensor.ndim == 3 or tensor.dtype != torch.float32))


def _rows(part: Any, count: int) -> Any:
    given = {n: getattr(part, n) for n in vars(part)}
    return replace(part, **{n: None if v is None else v[:count] for n, v in given.items()})


def _cases(images: Images, texts: Texts) -> list[tuple[str, Images, Texts]]:
    """A batch as it is; one image and one caption of it; all with more padding."""
    longest = int(texts.mask.sum(1)[:1].clamp_min(1))
    one = _rows(texts, 1)
    one = Texts(
        one.ids[:, :longest],
        one.mask[:, :longest],
        None if one.features is None else one.features[:, :longest],
    )
    return [
        ("batch", images, texts),
        ("one", _rows(images, 1), one),
        ("padded", *_padded(images, texts)),
    ]


def _padded(images: Images, texts: Texts) -> tuple[Images, Texts]:
    longer = Texts(
        F.pad(texts.ids, (0, 1)),
        F.pad(texts.mask, (0, 1)),
        None if texts.features is None else F.pad(texts.features, (0, 0, 0, 1)),
    )
    if images.mask is None:
        return images, longer
    more = Images(
        F.pad(images.features, (0, 0, 0, 2)),
        F.pad(images.mask, (0, 2)),
        None,
        None if images.relations is None else F.pad(images.relations, (0, 2, 0, 2)),
    )
    return more, longer
