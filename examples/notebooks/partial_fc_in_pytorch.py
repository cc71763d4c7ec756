# %% [markdown]
# # Partial FC in a plain PyTorch loop
# A dataset opens as an `IterableDataset`; `PartialFC` is the head. Neither needs Ray. Where torch.distributed is
# initialised, both split themselves over the ranks; wrap the backbone in DistributedDataParallel then.

# %%
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from rayface import open_dataset, synthesize
from rayface.backbones import build_backbone
from rayface.heads import PartialFC
from rayface.heads.margins import CosFace

if not Path("faces/dataset.json").exists():
    synthesize("faces", identities=30, images_per_identity=12)  # drawn; put your own dataset in its place

# %%
dataset = open_dataset("faces")
images = dataset.to_torch(image_size=32, shuffle=True, equal_parts=True)
loader = DataLoader(images, batch_size=36, num_workers=2, drop_last=True)
backbone = build_backbone("mini", embedding_size=64, image_size=32, width=0.5)

# %% [markdown]
# `PartialFC` is no `nn.Module`: its class centers are no parameters. Give the optimizer the backbone only, and call
# `head.step(lr)` where you call `optimizer.step()`.

# %%
head = PartialFC(embedding_size=64, num_classes=dataset.num_classes, margin=CosFace(0.1, scale=16.0), sample_rate=0.5)
optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
losses = []
for epoch in range(4):
    images.set_epoch(epoch)
    for batch, labels in loader:
        loss = head.loss(backbone(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.step(lr=0.1)
        losses.append(loss.item())
    print(f"epoch {epoch}: loss {losses[-1]:.2f}")

# %% [markdown]
# How often is the nearest class center that of the image's own identity?

# %%
backbone.eval()
with torch.no_grad():
    batch, labels = next(iter(DataLoader(dataset.to_torch(image_size=32), batch_size=dataset.num_images)))
    cosines = torch.nn.functional.normalize(backbone(batch)) @ torch.nn.functional.normalize(head.centers).T
accuracy = (cosines.argmax(1) == labels).float().mean().item()
print(f"{accuracy:.0%} of the training images are nearest to their own center")
