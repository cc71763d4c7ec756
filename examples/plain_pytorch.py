"""The preset `mini` as a plain single-process PyTorch script: the baseline of rayface's speed measurements.

    python examples/plain_pytorch.py DIR [DIR ...] --steps 100

Decodes all images into memory first, so a step is only computation; prints images/s, the median over steps.
"""

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from rayface.backbones import build_backbone
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.images import normalize
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault


def load(directories: list[str], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images (N, size, size, 3) uint8 and labels (N,) of the directories as one dataset."""
    dataset = open_dataset(directories, join="labels")
    samples = read_samples(dataset.shard_paths(), dataset.index)
    images, bad = decode_images([b"" if isinstance(s, Fault) else s.jpeg for s in samples], size)
    whole = np.setdiff1d(np.arange(len(images)), list(bad))
    return torch.from_numpy(images[whole]), torch.from_numpy(dataset.index.label[whole].astype(np.int64))


def main() -> None:
    """Train for some steps and print the images/s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        images, labels = load(options.directories, 56)
    except ValueError as error:
        parser.error(str(error))
    if options.steps < 1 or options.batch_size < 2:
        parser.error("--steps must be at least 1, --batch-size at least 2")
    num_classes = int(labels.max()) + 1
    net = build_backbone("mini", embedding_size=256, image_size=56, dropout=0.4).to(memory_format=torch.channels_last)
    centers = torch.nn.Parameter(torch.randn(num_classes, 256) * 0.01)
    parameters = [p for p in net.parameters() if p.requires_grad] + [centers]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    order, seconds = torch.randperm(len(images)), []
    for step in range(options.steps):
        start = time.perf_counter()
        ids = order[(torch.arange(options.batch_size) + step * options.batch_size) % len(order)]
        batch, targets = images[ids], labels[ids]
        mirrored = torch.rand(len(batch)) < 0.5
        batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(2), batch)
        dx, dy = (int(v) for v in torch.randint(0, 7, (2,)))
        batch = F.pad(batch, (0, 0, 3, 3, 3, 3))[:, dy : dy + 56, dx : dx + 56]
        x = (normalize(batch) + 1) * (
            0.8 + 0.4 * torch.rand(len(batch), 1, 1, 1)
        ) - 1  # black, which is -1, stays black
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = net(x.contiguous(memory_format=torch.channels_last))
        cosines = F.normalize(embeddings.float()) @ F.normalize(centers).T
        loss = F.cross_entropy(24 * (cosines - 0.2 * F.one_hot(targets, num_classes)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[len(seconds) // 5 :])
    print(f"{options.batch_size / median:.0f} images/s (median), loss {loss.item():.2f}")


if __name__ == "__main__":
    main()
