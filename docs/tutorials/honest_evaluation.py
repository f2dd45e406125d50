# %% [markdown]
# # Honest evaluation
#
# A recall means nothing without its gallery, and a difference nothing without an interval. Train a
# small model first:

# %% language="bash"
# itmkit fit --config mate/shapes --name demo --trainer.max_steps 60 --untrained false \
#   --data.dataset.length '{train: 1000, val: 200, test: 200}' > log.txt

# %%
from itmkit.retrieval import Protocol, bootstrap_recall, encode, evaluate, rank_queries
from itmkit.systems import load_run

model, data = load_run("runs/demo/latest")
gallery = encode(model, data.test_dataloader())
for folds in (1, 4):
    recall = evaluate(model, gallery, protocol=Protocol(folds=folds))
    print(f"{folds} galleries of {200 // folds} images: t2i R@1 {recall['t2i_r1']:.1f}")

# %% [markdown]
# The same model, and the smaller gallery gives the larger number: two numbers can be compared only
# under the same protocol. Intervals resample queries, an image with all of its captions:

# %%
intervals = bootstrap_recall(rank_queries(model, gallery), samples=500, seed=0)
low, high = intervals["t2i_r1"]
print(f"t2i R@1 is between {low:.1f} and {high:.1f} (95 %)")

# %% [markdown]
# Ties count against the query: a model that gives all pairs one score has a recall of 0, and not of
# 100. `metrics.json` of a run says which split, gallery, checkpoint and step its numbers are of.

# %%
import json

print(json.loads(open("runs/demo/latest/metrics.json").read())["about"]["val"])
