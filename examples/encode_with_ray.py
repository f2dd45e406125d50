"""Encode a folder of pictures on all machines of a Ray cluster, into files of Parquet.

Run: pip install 'itmkit[ray]', then
python examples/encode_with_ray.py photos/ --model mine --output vectors/ --table photos.csv
With RAY_ADDRESS it runs on that cluster, where all machines must see model, pictures and output;
these two may be addresses such as s3://bucket/photos. Without it, on this machine alone.
examples/search_in_lancedb.py searches the result.
"""

import argparse
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import ray
from pyarrow import fs

from itmkit.checks import InputError
from itmkit.files import user_path
from itmkit.index import picture_columns
from itmkit.index.columns import check_columns, column_arrays
from itmkit.retriever import BatchEncoder, open_pictures, picture_names


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", help="folder or address of the pictures")
    parser.add_argument("--model", required=True, help="run, saved folder, or name on the hub")
    parser.add_argument("--output", required=True, help="new folder or address of the vectors")
    parser.add_argument("--table", help="CSV or Parquet with a row a picture: columns to keep")
    parser.add_argument("--workers", type=int, default=1, help="processes that encode")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each of them")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures a batch")
    given = parser.parse_args(arguments)

    remote = "://" in given.output
    output = given.output if remote else str(user_path(given.output).resolve())
    photos = given.photos if "://" in given.photos else str(user_path(given.photos).resolve())
    store, folder = fs.FileSystem.from_uri(output)
    if store.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        raise InputError(f"output is '{output}', which holds files; expected a new folder")
    names = picture_names(open_pictures(photos))
    columns = picture_columns(given.table) if given.table else {}
    check_columns(names, columns)
    items = pa.table({"path": names, **column_arrays(names, columns)})
    first = BatchEncoder(given.model, photos, device="cpu")
    width = first.width  # a model without vectors fails here, before any work is sent
    model = first.retriever.source

    blocks = [items[row : row + given.batch_size] for row in range(0, len(items), given.batch_size)]
    ray.data.from_arrow(blocks).map_batches(
        BatchEncoder,
        fn_constructor_args=(model, photos),
        batch_format="pyarrow",
        batch_size=given.batch_size,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_gpus=given.gpus,
    ).write_parquet(output)

    done = ds.dataset(folder, filesystem=store, format="parquet")
    errors = done.to_table(["error"], filter=pc.field("error").is_valid())["error"].to_pylist()
    print(f"{len(names) - len(errors)} pictures, {width} numbers each, in {output}")
    for error in errors:
        print(f"skipped: {error}")


if __name__ == "__main__":
    main()
