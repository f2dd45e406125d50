# %% [markdown]
# # One loss in your project
#
# Losses need torch alone: no Lightning, no configuration, none of our models. Here two Linear
# layers learn that two noisy views belong together.

# %%
import torch
from torch import nn

from itmkit.losses import InfoNCELoss, TripletLoss, VectorLoss

torch.manual_seed(0)
truth = torch.randn(64, 16)
image, text = truth + 0.3 * torch.randn(64, 16), truth + 0.3 * torch.randn(64, 16)
left, right = nn.Linear(16, 8), nn.Linear(16, 8)
optimizer = torch.optim.Adam([*left.parameters(), *right.parameters()], lr=1e-2)
loss = VectorLoss(InfoNCELoss(temperature=0.1))

for step in range(101):
    value = loss(left(image), right(text))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if step % 50 == 0:
        print(step, f"{value.item():.3f}")

# %% [markdown]
# A loss of scores takes the matrix that you have, and all true pairs: an image with several
# captions has several, and none of them is a negative.

# %%
scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.1, 0.7]])  # 2 images, 3 captions
positives = torch.tensor([[True, True, False], [False, False, True]])
print(TripletLoss(margin=0.2)(scores, positives))

# %% [markdown]
# Under autocast losses compute in float32. In `DistributedDataParallel`,
# `itmkit.losses.Distributed` counts the negatives of all processes. [Losses](../../losses.md) says
# which loss is for what.
