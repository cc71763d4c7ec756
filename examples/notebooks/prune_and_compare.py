# %% [markdown]
# # Prune to a core set and compare
# Face-NMS keeps the images of an identity that differ from each other. The result is a dataset, on which one trains as
# on any other; a random choice of the same size is the baseline to beat.

# %%
from pathlib import Path

from rayface import embed, evaluate, load_config, prune, synthesize, train
from rayface.config import Config
from rayface.training.run_directory import RunDirectory

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)
if not Path("unseen/pairs.csv").exists():
    synthesize("unseen", identities=20, images_per_identity=6, pairs=100, seed=1)


def settings(preset: str | None = None, **keys: object) -> Config:
    """A config from keys with __ for the dot."""
    changes = {key.replace("__", "."): value for key, value in keys.items()}
    return load_config(preset, overrides={**changes, "tracking.enabled": False})


def trained(name: str, data: str) -> None:
    if not RunDirectory(Path("runs", name)).is_finished():
        train(settings("debug", data__train=data, train__epochs=4, train__output=f"runs/{name}"))


def accuracy(name: str) -> float:
    job = settings(
        evaluate__model=f"runs/{name}",
        evaluate__pairs="unseen/pairs.csv",
        evaluate__data="unseen",
        evaluate__out=f"results/{name}",
    )
    return float(evaluate(job).to_pandas().set_index("figure").loc["accuracy_mean", "value"])


# %% [markdown]
# A model trained on everything embeds the images, and its embeddings are pruned twice.

# %%
trained("example", "faces")
embed(settings(embed__model="runs/example", embed__data="faces", embed__out="embeddings"))
for method in ("face_nms", "random"):
    job = settings(
        prune__method=method,
        prune__embeddings="embeddings",
        prune__data="faces",
        prune__keep=0.6,
        prune__out=f"core_{method}",
    )
    decisions = prune(job).to_pandas()  # a row for each image
    print(method, decisions["kept"].value_counts().to_dict())

# %% [markdown]
# Equal epochs on 60 % of the images are 60 % of the steps. One small run each shows the way, not a winner.

# %%
for name in ("face_nms", "random"):
    trained(name, f"core_{name}")
found = {name: accuracy(name) for name in ("example", "face_nms", "random")}
print({name: f"{value:.1%}" for name, value in found.items()})
