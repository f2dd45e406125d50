# %% [markdown]
# # Export to ONNX
#
# A trained system as files that run without itmkit and without PyTorch. Here is a small one, of a
# few steps on [shapes](../../shapes.md):

# %% language="bash"
# itmkit fit --config mate/shapes --name mine --trainer.max_steps 60 --report false
# itmkit export mine --to onnx --output exported
# ls exported

# %% [markdown]
# The files were compared with the model before they were kept, with other batch sizes and paddings
# than those of the export. `certificate.json` says by what, and what each file takes and gives:

# %%
import json

certificate = json.load(open("exported/certificate.json"))
difference, tolerance = certificate["largest_difference"], certificate["tolerance"]
print(f"{difference:.0e} of at most {tolerance:.0e}")
for name, file in certificate["files"].items():
    print(name, *file["inputs"], "->", *file["outputs"])

# %% [markdown]
# What runs them needs numpy and onnxruntime. It prepares pictures and sentences as the run did:
# pixels of the size of training, normalised, and the token ids of the run, padded at the end. Here
# itmkit does so.

# %%
import torch
from PIL import Image

import itmkit
from itmkit.data import ShapesDataset, pad_texts

scenes = ShapesDataset("test", length=4)
pictures = []
for row in range(4):
    drawn = ((scenes.image(row) * 0.5 + 0.5).clamp(0, 1) * 255).byte()
    pictures.append(Image.fromarray(drawn.permute(1, 2, 0).numpy()))
sentences = ["a red circle", "a large green ring is above a small blue square"]

retriever = itmkit.load("mine", device="cpu")
prepare, tokenizer = retriever.preprocessing, retriever.tokenizer
pixels = torch.stack([prepare(picture) for picture in pictures])
features = prepare.normalise(pixels).numpy()
ids = [tokenizer.encode(sentence).ids for sentence in sentences]
texts = pad_texts(ids, tokenizer.pad_id)

# %%
import numpy as np
import onnxruntime


def run(name, **inputs):
    session = onnxruntime.InferenceSession(f"exported/{name}.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


images = run("image_encoder", features=features)
words = run("text_encoder", ids=texts.ids.numpy(), mask=texts.mask.numpy())
scores = run(
    "score",
    image_vector=images["vector"],
    image_tokens=images["tokens"],
    text_vector=words["vector"],
    text_tokens=words["tokens"],
    text_mask=words["out_mask"],
)["scores"]
print(scores.round(3))

# %% [markdown]
# A row a picture, a column a sentence. They are the scores of PyTorch:

# %%
print(np.abs(retriever.scores(pictures, sentences).numpy() - scores).max() < 1e-4)

# %% [markdown]
# [Export](../../export.md) says what each system exports, and what is compared.
