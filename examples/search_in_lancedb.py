"""Search the vectors of examples/encode_with_ray.py in LanceDB; itmkit scores what it finds.

Run: pip install 'itmkit[lancedb]', then
python examples/search_in_lancedb.py pictures/ "two dogs" --model mine --vectors vectors/
The database is a folder here, or in an object store: s3://bucket/pictures. --vectors fills it, and
is left out from then on. LanceDB filters and finds candidates, exactly while it has no index of its
own; a model with a second stage then reads their pictures (--photos) and puts them in order.
"""

import argparse
from collections.abc import Sequence

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch

import itmkit
from itmkit.checks import InputError
from itmkit.retrieval import Encoding
from itmkit.retriever import open_pictures


def fill(database: lancedb.DBConnection, vectors: str) -> None:
    """Make the table anew of all pictures that could be read, batch by batch."""
    source = ds.dataset(vectors, format="parquet")
    readable = source.scanner(filter=pc.field("error").is_null())
    reader = pa.RecordBatchReader.from_batches(source.schema, readable.to_batches())
    table = database.create_table("pictures", reader, mode="overwrite")
    print(f"{table.count_rows()} pictures of {vectors} are now in {database.uri}")


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("database", help="folder or address of the database")
    parser.add_argument("query", help="a sentence")
    parser.add_argument("--model", required=True, help="the model that made the vectors")
    parser.add_argument("--vectors", help="files of Parquet to fill the database with, first")
    parser.add_argument("--photos", help="the pictures: a model with a second stage reads them")
    parser.add_argument("--where", help='SQL condition on the columns: "year > 2019"')
    parser.add_argument("--candidates", type=int, default=50, help="pictures that itmkit scores")
    parser.add_argument("--k", type=int, default=10, help="hits wanted")
    given = parser.parse_args(arguments)

    retriever = itmkit.load(given.model)
    second_stage = retriever.model.rerank_top_k > 0
    if second_stage and given.photos is None:
        raise InputError("photos is None; expected them, for the model's second stage")
    database = lancedb.connect(given.database)
    if given.vectors:
        fill(database, given.vectors)
    table = database.open_table("pictures")
    own = table.search().select(["fingerprint"]).limit(1).to_arrow()["fingerprint"].to_pylist()
    if own != [retriever.fingerprint]:
        raise InputError(f"database is of another model ({own}); expected {retriever.fingerprint}")

    text = retriever.encode_texts([given.query])
    search = table.search(text.vector[0].numpy()).distance_type("cosine").limit(given.candidates)
    found = (search.where(given.where, prefilter=True) if given.where else search).to_arrow()
    print(f"{len(found)} candidates of {table.count_rows()} pictures, where: {given.where}")
    if not len(found):
        return []
    paths = found["path"].to_pylist()
    if second_stage:
        files = open_pictures(given.photos)
        images = retriever.encode_images([files.open_input_file(path).read() for path in paths])
    else:
        images = Encoding(vector=torch.from_numpy(np.stack(found["vector"].to_numpy())))
    scores, rows = retriever.rank(images, text, given.k)
    hits = [(paths[row], score) for row, score in zip(rows[0], scores[0].tolist(), strict=True)]
    for path, score in hits:
        print(f"{score:.4f}  {path}")
    return hits


if __name__ == "__main__":
    main()
