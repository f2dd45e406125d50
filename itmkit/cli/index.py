"""``itmkit index``: make an index of a folder of pictures, or bring one up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from itmkit.checks import InputError, check_unused
from itmkit.files import read_text


def index(
    photos: Path,
    *,
    model: str | None = None,
    output: Path | None = None,
    table: Path | None = None,
    shard: str = "1/1",
    merge: list[Path] | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    follow_links: bool = False,
    calibrate: bool = True,
    factory: str | None = None,
    queries: Path | None = None,
    device: str | None = None,
) -> None:
    """Index the pictures of a folder and of the folders in it, for ``itmkit search``.

    What is in the index already and did not change is not encoded again. Stopped at any point, the
    same command continues.

    Args:
        photos: folder of the pictures.
        model: NAME of a run (for runs/NAME/latest), folder of a run or of a saved retriever, or
            name on the hub of a saved retriever or of a CLIP-like model of transformers.
        output: folder of the index; where null, that of the run: runs/NAME/index.
        table: CSV, TSV, JSONL or Parquet with a row a picture (column file_name, filename, image or
            path), whose other columns ``itmkit search --where`` can ask for.
        shard: ``i/k``: index part i of k alone; ``merge`` joins the parts.
        merge: indexes of all parts of ``photos``, to be joined into ``output``; nothing is encoded,
            and other options are refused.
        dtype: type of what is stored of a picture; where null, float32.
        batch_size: pictures encoded at a time.
        num_workers: processes that read pictures.
        follow_links: whether links may lead out of the folder.
        calibrate: whether probabilities of hits are learnt from the validation split of the run.
        factory: faiss index that finds candidates for large galleries, such as "IVF64,Flat"
            (itmkit[faiss]); refused where it finds less than 0.95 of what exact search finds. An
            existing one is built again when the pictures change.
        queries: file of sentences, one a line, that ``factory`` is measured with; where null, the
            validation captions of the run.
        device: device of the model, such as ``cpu`` or ``cuda:1``; where null, a GPU if there is
            one.
    """
    given = locals()
    from itmkit.index import merge_indexes
    from itmkit.retriever import load
    from itmkit.retriever.calibrate import calibration_of_run
    from itmkit.retriever.names import index_of

    if merge is not None:
        if output is None:
            raise InputError("output is null; expected a folder for the merged index")
        others = [name for name in given if name not in ("photos", "merge", "output")]
        check_unused(index, given, others, "with merge")
        print(f"{merge_indexes(merge, output, photos=photos)}\nindex: {output}")
        return
    if model is None:
        raise InputError("model is null; expected the name of a run or of a CLIP-like model")
    folder = output or index_of(model)
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise InputError(f"shard is {shard!r}; expected i/k, such as 1/4")
    retriever = load(model, device=device)
    made = retriever.index(
        photos,
        folder,
        table=table,
        shard=(int(part), int(parts)),
        dtype=dtype or "float32",
        batch_size=batch_size,
        num_workers=num_workers,
        follow_links=follow_links,
        factory=factory,
        queries=None if queries is None else read_text(queries).split("\n"),
    )
    print(f"{made.update}\nindex: {folder}")
    if made.faiss is not None:
        print(f"faiss: {made.faiss}")
    if calibrate and made.calibration is None:
        try:
            made.calibrate(calibration_of_run(retriever.source))
        except (InputError, OSError) as error:
            print(f"hits have no probabilities: {error}")
