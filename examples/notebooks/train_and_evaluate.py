# %% [markdown]
# # Train and evaluate
# A config is a preset and changes by key; a job takes a config and returns a result. All keys:
# site/reference/config.html, built by `make docs`.

# %%
from pathlib import Path

from rayface import evaluate, load_config, load_model, open_dataset, synthesize, train
from rayface.training.run_directory import RunDirectory

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)
if not Path("unseen/pairs.csv").exists():
    synthesize("unseen", identities=20, images_per_identity=6, pairs=100, seed=1)  # other people, with pairs to verify

# %%
settings = {
    "data.train": "faces",
    "train.epochs": 4,
    "train.output": "runs/example",
    "tracking.enabled": False,  # True: also into MLflow
}
run = RunDirectory(Path("runs/example"))
if not run.is_finished():
    train(load_config("debug", overrides=settings))

# %%
metrics = run.to_pandas()  # a row for each step
print(metrics["train/loss"].dropna().iloc[[0, -1]])

# %%
settings = {
    "evaluate.model": "runs/example",
    "evaluate.pairs": "unseen/pairs.csv",
    "evaluate.data": "unseen",
    "evaluate.out": "results",
    "tracking.enabled": False,
}
figures = evaluate(load_config(overrides=settings)).to_pandas()
print(figures[figures["figure"] == "accuracy_mean"])  # chance is 0.5

# %% [markdown]
# The model embeds images in Python too; `results/report.html` shows the curves and the worst pairs.

# %%
model = load_model("runs/example")
side = model.info.image_size
stream = open_dataset("unseen").to_torch(image_size=side, transform=lambda pixels: pixels)
pixels, label = next(iter(stream))
print(model.embed(pixels[None]).shape)
