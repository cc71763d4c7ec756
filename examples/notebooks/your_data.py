# %% [markdown]
# # Convert and open your data
# Folders, `.rec`, zips, parquet, LMDB and others become one format: tar shards with an index. Here: a folder of images
# for each identity.

# %%
from pathlib import Path

import ray

from rayface import convert, load_config, open_dataset, synthesize
from rayface.data.check import check
from rayface.data.targets.folder import write_folder

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)
if not Path("photos").exists():
    write_folder(open_dataset("faces"), "photos")  # photos/IDENTITY/KEY.jpg

# %%
settings = {"convert.source": "photos", "convert.kind": "folder", "convert.out": "converted", "convert.min_images": 2}
dataset = convert(load_config(overrides=settings))
print(f"{dataset.num_images} images of {dataset.num_classes} identities in {len(dataset.shards)} shards")
print(f"faults: {check('converted', deep=True).faults or 'none'}")

# %% [markdown]
# The same dataset for PyTorch, for the `webdataset` library, and for Ray. Ranks and DataLoader workers read every image
# once, together.

# %%
image, label = next(iter(dataset.to_torch(shuffle=True, seed=0)))
print(f"PyTorch: {tuple(image.shape)} {image.dtype} of identity {dataset.identities[label]}")

# %%
pixels, label = next(iter(dataset.to_webdataset().decode("rgb8").to_tuple("jpg", "cls")))
print(f"webdataset: {pixels.shape} {pixels.dtype}, label {label}")

# %%
if not ray.is_initialized():
    ray.init(include_dashboard=False)
rows = dataset.to_ray(image_size=112).take(2)
print(f"Ray: {rows[0]['image'].shape} {rows[0]['image'].dtype}, key {rows[0]['key']}")
