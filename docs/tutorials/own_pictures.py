# %% [markdown]
# # Your own pictures
#
# A folder of photos and a table of captions are enough. As this page is made without a network, its
# photos are 300 scenes of [shapes](../../shapes.md), saved as JPEGs.

# %%
import csv
from pathlib import Path

from PIL import Image

from itmkit.data import ShapesDataset

scenes = ShapesDataset("train", length=300, image_size=96)
Path("photos").mkdir()
with open("captions.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["file_name", "caption"])
    for row in range(300):
        name = f"{row:03}.jpg"
        pixels = ((scenes.image(row) * 0.5 + 0.5).clamp(0, 1) * 255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"photos/{name}")
        table.writerows([name, scenes.captions[at]] for at in scenes.captions_of(row))

# %% language="bash"
# head -3 captions.csv

# %% [markdown]
# A pretrained backbone does best with real photos. Its features are extracted once:
#
# ```
# itmkit fit --config mate/photos --photos photos --captions captions.csv --name mine
# ```
#
# Here a small model reads the pixels of the photos instead. A configuration starts from a shipped
# one and names what differs:

# %%
Path("mine.yaml").write_text("""\
bases: [mate/shapes]
data:
  init_args:
    dataset:
      class_path: itmkit.data.CaptionedFolder
      init_args: {photos: photos, captions: captions.csv}
    batch_size: 64
trainer:
  max_steps: 60
""")

# %% language="bash"
# itmkit fit --config mine.yaml --name mine

# %% [markdown]
# Photos without a split are drawn into train, val and test by their names, which
# `captions.splits.json` keeps. Now make an index of the photos, and search it:

# %% language="bash"
# itmkit index photos --model mine
# itmkit search mine "a large red circle" -k 3

# %% [markdown]
# The same in Python:

# %%
import itmkit

retriever = itmkit.load("mine")
for hit in retriever.open_index("runs/mine/index").search("a large red circle", k=3):
    print(hit.path.name, f"{hit.score:.3f}")
