# %% [markdown]
# # Your own system
#
# A system is a `Matcher` with four methods. This one compares the mean tokens of both sides.

# %%
from pathlib import Path

Path("mine.py").write_text('''\
from torch import Tensor, nn
from itmkit.data import Batch, Images, Texts
from itmkit.losses import InfoNCELoss
from itmkit.nn import BiGRU, RegionProjection, Tokens
from itmkit.retrieval import Encoding
from itmkit.systems import Matcher, cosine_scores


def mean(encoded: Tokens) -> Tensor:
    tokens, mask = encoded
    if mask is None:
        return tokens.mean(1)
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class MeanMatcher(Matcher):
    """Cosine of the mean tokens of an image and of a caption."""

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, **kwargs):
        super().__init__(**kwargs)
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.criterion = InfoNCELoss(temperature=0.1)

    def encode_image(self, images: Images) -> Encoding:
        return Encoding(vector=mean(self.image_encoder(images.features, images.mask)))

    def encode_text(self, texts: Texts) -> Encoding:
        return Encoding(vector=mean(self.text_encoder(texts.inputs, texts.mask)))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.criterion(*self.batch_scores(batch))}


def make() -> MeanMatcher:
    return MeanMatcher(RegionProjection(437, 16), BiGRU(64, 16, 16))
''')

# %% [markdown]
# The same checks that itmkit runs on its own systems work for yours: a score depends on its pair
# alone, any number of processes gives the same result, numbers are finite, a checkpoint restores
# everything.

# %%
from mine import make

from itmkit.data import ImageTextData, ShapesDataset
from itmkit.testing import check_matcher

data = ImageTextData(
    lambda split: ShapesDataset(split, length=8, regions=True),
    batch_size=7,
)
check_matcher(make, next(iter(data.train_dataloader())))
print("all checks passed")

# %% [markdown]
# Train it. The command line knows the arguments of the constructor, and those of `Matcher`:

# %%
Path("mine.yaml").write_text("""\
model:
  class_path: mine.MeanMatcher
  init_args:
    image_encoder:
      class_path: itmkit.nn.RegionProjection
      init_args: {in_dim: 437, dim: 64}
    text_encoder:
      class_path: itmkit.nn.BiGRU
      init_args: {dim: 64}
data:
  dataset:
    class_path: itmkit.data.ShapesDataset
    init_args: {regions: true, length: {train: 500, val: 100, test: 100}}
  batch_size: 64
trainer: {max_epochs: 3, enable_progress_bar: false}
""")

# %% language="bash"
# itmkit fit --config mine.yaml

# %% [markdown]
# [Extending itmkit](../../extend.md) has losses, encoders and datasets of your own.
