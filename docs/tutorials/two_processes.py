# %% [markdown]
# # Two processes
#
# Several processes give the result of one: the same loss, the same negatives, exact gradients, each
# sample counted once. `data.batch_size` is that of a process. One process with batches of 32:

# %% language="bash"
# itmkit fit --config daim/shapes --name one --data.batch_size 32 --trainer.max_steps 6 \
#   --untrained false --data.dataset.length '{train: 200, val: 50, test: 50}' \
#   --trainer.precision 64-true --trainer.accelerator cpu --trainer.sync_batchnorm true \
#   > one.txt

# %% [markdown]
# And two with 16 each, on this machine (with GPUs: two of them):

# %% language="bash"
# itmkit fit --config daim/shapes --name two --data.batch_size 16 --trainer.max_steps 6 \
#   --untrained false --data.dataset.length '{train: 200, val: 50, test: 50}' \
#   --trainer.precision 64-true --trainer.accelerator cpu --trainer.sync_batchnorm true \
#   --trainer.devices 2 --trainer.strategy ddp > two.txt

# %%
import json

for name in ("one", "two"):
    metrics = json.loads(open(f"runs/{name}/latest/metrics.json").read())
    print(name, metrics["val/rsum"])

# %% [markdown]
# [Several GPUs and machines](../../distributed.md) says how to start other ways, and what dropout
# does to the comparison: each process draws its own. `--trainer.sync_batchnorm true` lets BatchNorm
# layers of a backbone learn from the batches of all processes; without it the numbers differ.
