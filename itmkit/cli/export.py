"""``itmkit export``: a trained model as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from itmkit.checks import InputError, check_count


def export(
    run: str, *, to: Literal["onnx"] = "onnx", output: Path | None = None, batches: int = 4
) -> None:
    """Write the image encoder, the text encoder and the scores of a run as ONNX files.

    They take what the model takes: normalised pixels or region features, and token ids. They are
    run on the validation split of the run, and kept only if they compute what the model does.

    Args:
        run: NAME of a run (for runs/NAME/latest), or its folder; its data must be there.
        to: format of the files.
        output: folder of the files; where null, ``onnx`` in that of the run.
        batches: batches of the validation split on which the files are compared with the model.
    """
    from itertools import islice

    from itmkit.export import CERTIFICATE, export_onnx, require_onnx
    from itmkit.files import user_path
    from itmkit.systems import find_run, load_run

    check_count(batches=batches)
    require_onnx()
    folder = find_run(run)
    target = folder / "onnx" if output is None else user_path(output)
    model, data = load_run(folder)
    if data.val_split is None:
        raise InputError(f"run is {run!r}, which has no validation split; expected one with it")
    loader = islice(iter(data.val_dataloader()), batches)
    certificate = export_onnx(model, [(batch.images, batch.texts) for batch in loader], target)
    largest, gallery = certificate["largest_difference"], certificate["gallery"]
    print(
        f"{len(certificate['files'])} files: {target}\nlargest difference to the model: "
        f"{largest:.1e}, the same best {gallery['top']} in a gallery of {gallery['images']} "
        f"images and {gallery['texts']} captions ({target / CERTIFICATE})"
    )
