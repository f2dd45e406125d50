# %% [markdown]
# # Shapes: from nothing to a search in two minutes
#
# The built-in dataset draws scenes of coloured shapes and says true sentences about them
# ([more](../../shapes.md)). Nothing is downloaded. Train MATE, one of the systems of itmkit, for a
# moment: 60 steps on 1,000 scenes. The shipped configuration takes 600 steps on 6,000 scenes:

# %% language="bash"
# itmkit fit --config mate/shapes --name demo --trainer.max_steps 60 \
#   --data.dataset.length '{train: 1000, val: 200, test: 200}'

# %% [markdown]
# Every run has a folder of its own, and `latest` leads to the newest.

# %% language="bash"
# ls runs/demo/latest/

# %% [markdown]
# The best checkpoint on the test split, and the same model before training:

# %% language="bash"
# itmkit test --ckpt_path runs/demo/latest --untrained true

# %% [markdown]
# In Python, the best captions of a scene:

# %%
import torch

from itmkit.data import Images
from itmkit.retrieval import best_captions, encode, evaluating
from itmkit.systems import load_run

model, data = load_run("runs/demo/latest")
dataset = data.split("test")
gallery = encode(model, data.test_dataloader())
picture = Images(torch.stack([dataset.image(0)]))
with evaluating(model):
    scores, rows = best_captions(model, model.encode_image(picture), gallery.texts, k=3)
for score, row in zip(scores[0], rows[0]):
    print(f"{score:.2f}  {dataset.captions[gallery.text_ids[row]]}")
