"""The files of a matcher, in a folder that is there only where they compute the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import itmkit
from itmkit.checks import InputError, type_of
from itmkit.data.batch import Images, Texts
from itmkit.export.matcher_files import write_matcher
from itmkit.export.onnx_files import OnnxFiles
from itmkit.export.parity import TOLERANCE, Parity, cases
from itmkit.extras import require_extra
from itmkit.files import sole_writer_beside, user_path, write_text
from itmkit.retrieval.encode import evaluating
from itmkit.systems.matcher import Matcher

CERTIFICATE = "certificate.json"


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
    n, m = (len(batches[0][0]), len(batches[0][1])) if batches else (0, 0)
    if n < 3 or m < 4:
        raise InputError(
            f"examples has {n} images and {m} captions in its first batch; expected 3 and 4 at "
            "least"
        )
    with _new_folder(user_path(folder)) as work:
        files = OnnxFiles(work)
        parity = Parity(model, files)
        with evaluating(model), torch.autocast("cpu", enabled=False):
            images, texts = batches[0]
            write_matcher(files, model, images.rows(slice(3)), texts.rows(slice(4)))
            checks = [parity.of_batch(*case) for one in batches for case in cases(*one)]
            gallery = parity.of_gallery(batches)
        certificate = {
            "itmkit": itmkit.__version__,
            "torch": torch.__version__,
            "system": type(model).__name__,
            "tolerance": TOLERANCE,
            "largest_difference": parity.largest,
            "files": files.facts,
            "checks": checks,
            "gallery": gallery,
        }
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
