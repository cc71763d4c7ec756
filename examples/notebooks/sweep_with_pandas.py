# %% [markdown]
# # A small sweep, read with pandas
# A sweep file names the keys to search and the objective; every other key is that of each trial. A sweep that was
# interrupted resumes when the cell runs again.

# %%
from pathlib import Path

import yaml

from rayface import synthesize, tune

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)
if not Path("unseen/pairs.csv").exists():
    synthesize("unseen", identities=20, images_per_identity=6, pairs=100, seed=1)

# %%
sweep = {
    "preset": "debug",
    "config": {
        "data": {"train": "faces"},
        "train": {"epochs": 2},
        "evaluate": {"pairs": "unseen/pairs.csv", "data": "unseen"},
        "tracking": {"enabled": False},
    },
    "search": {"optim.lr": {"low": 0.01, "high": 0.3, "log": True}, "head.sample_rate": [0.3, 1.0]},
    "objectives": [{"metric": "accuracy_mean", "mode": "max"}],
    "sweep": {"trials": 2, "sampler": "random", "seed": 1, "output": "sweeps/example"},
}
Path("example_sweep.yaml").write_text(yaml.safe_dump(sweep))
trials = tune(Path("example_sweep.yaml"), resume="auto").to_pandas()

# %% [markdown]
# `sweeps/example/report.html` draws the same; `best.yaml` beside it is the config of the best trial.

# %%
print(trials.sort_values("accuracy_mean", ascending=False).to_string(index=False))
print(trials.groupby("head.sample_rate")["accuracy_mean"].mean())
