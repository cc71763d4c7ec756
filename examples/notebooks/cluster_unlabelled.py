# %% [markdown]
# # Cluster an unlabelled set
# A model embeds the images, `cluster` finds identities, and the clusters are a dataset to train on. This set has
# labels, so the clusters can be scored.

# %%
from pathlib import Path

from rayface import cluster, embed, load_config, open_dataset, synthesize, train
from rayface.training.run_directory import RunDirectory

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)
if not Path("unseen/dataset.json").exists():
    synthesize("unseen", identities=20, images_per_identity=6, pairs=100, seed=1)
local = {"tracking.enabled": False}
if not RunDirectory(Path("runs/example")).is_finished():
    keys = {"data.train": "faces", "train.epochs": 4, "train.output": "runs/example", **local}
    train(load_config("debug", overrides=keys))

# %%
keys = {"embed.model": "runs/example", "embed.data": "unseen", "embed.out": "unseen_embeddings", **local}
embed(load_config(overrides=keys))
keys = {
    "clustering.embeddings": "unseen_embeddings",
    "clustering.data": "unseen",
    "clustering.out": "clusters",
    **local,
}
result = cluster(load_config(overrides=keys))
print(f"{result.counts.clusters} clusters at a cosine of {result.threshold:.2f} ({result.threshold_from})")

# %%
sizes = result.to_pandas()["cluster"].value_counts()  # -1: noise
print(sizes.head())
if result.scores is not None:
    print(f"pairwise F {result.scores.pairwise_f:.2f}, BCubed F {result.scores.bcubed_f:.2f}")

# %%
found = open_dataset("clusters")  # data.train=clusters trains on it
print(f"{found.num_images} images of {found.num_classes} clusters")
