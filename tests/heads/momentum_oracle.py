"""DCQ and F2C as their papers state them: one process, Python lists for queue and LRU, a loop over the samples."""

import copy
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads import DCQ, F2C

FEATURES, WIDTH = 6, 5


def small_net(seed: int = 0) -> nn.Module:
    """Return a float64 net with batch normalisation, (n, FEATURES) -> (n, WIDTH)."""
    torch.manual_seed(seed)
    layers = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, WIDTH)
    return nn.Sequential(*layers).double()


def start_after_training(head: DCQ | F2C, net: nn.Module, images: Tensor) -> None:
    """Start a run of a head whose net has other weights and statistics than when the head was made."""
    net.load_state_dict(small_net(seed=3).state_dict())
    net(images)
    head.start()


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], tensor) for name, tensor in other.items())


def split(batch: int, ranks: int) -> list[slice]:
    """Return the rows of each rank."""
    return [slice(a, b) for a, b in pairwise(rank * batch // ranks for rank in range(ranks + 1))]


def move_average(average: nn.Module, net: nn.Module, momentum: float) -> None:
    """Move the parameters, one by one."""
    with torch.no_grad():
        for ours, theirs in zip(average.parameters(), net.parameters(), strict=True):
            ours.copy_(momentum * ours + (1 - momentum) * theirs)


@dataclass
class PlainDCQ:
    """DCQ over a list of (key, label)."""

    query: nn.Module
    queue: list[tuple[Tensor, int | None]]
    momentum: float
    margin: float
    scale: float
    oldest: int = 0

    def __post_init__(self) -> None:
        self.key = copy.deepcopy(self.query)

    def loss(
        self, queries: Tensor, keys: Tensor, labels: Tensor, parts: list[slice], key_parts: list[Tensor]
    ) -> Tensor:
        """Return the loss of a global batch; batch statistics are those of the rows of each part."""
        move_average(self.key, self.query, self.momentum)
        k = torch.empty(len(keys), WIDTH, dtype=torch.float64)
        with torch.no_grad():
            for part in key_parts:
                k[part] = F.normalize(self.key(keys[part]))
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            for q, own, label in zip(
                F.normalize(self.query(queries[part])), k[part], labels[part].tolist(), strict=True
            ):
                others = [q @ row for row, other in self.queue if other is None or other != label]
                logits = self.scale * torch.stack([q @ own - self.margin, *others])
                total = total + F.cross_entropy(logits[None], torch.tensor([0]))
        for own, label in zip(k, labels.tolist(), strict=True):
            self.queue[self.oldest] = (own, label)
            self.oldest = (self.oldest + 1) % len(self.queue)
        return total / len(labels)


@dataclass
class PlainF2C:
    """F2C over a pool of lists, and an LRU list of (identity, column)."""

    probe: nn.Module
    pool: list[list[Tensor]]
    momentum: float
    margin: float
    scale: float
    recent: list[tuple[int, int]] = field(default_factory=list)  # the least recently used first
    turn: dict[int, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)  # which kinds of passes there were

    def __post_init__(self) -> None:
        self.gallery = copy.deepcopy(self.probe)

    def loss(self, x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, parts: list[slice]) -> Tensor:
        """Return the loss of a global batch."""
        move_average(self.gallery, self.probe, self.momentum)
        saved = copy.deepcopy((self.pool, self.recent, self.turn))
        trial = self._pass(x, y, x_labels, y_labels, parts)
        self.pool, self.recent, self.turn = saved
        return trial + self._pass(y, x, y_labels, x_labels, parts)

    def _pass(self, p: Tensor, g: Tensor, p_labels: Tensor, g_labels: Tensor, parts: list[slice]) -> Tensor:
        probes = torch.cat([F.normalize(self.probe(p[part])) for part in parts])
        with torch.no_grad():
            galleries = torch.cat([F.normalize(self.gallery(g[part])) for part in parts])
        known = set()
        for row, identity in zip(galleries, g_labels.tolist(), strict=True):
            if self._write(row, identity):
                known.add(identity)
        column_of = dict(self.recent)
        mixed = {column_of[identity] for identity in known if identity in column_of}
        loss = torch.zeros((), dtype=torch.float64)
        for second in (set(), mixed):
            centers = torch.stack([slots[1 if column in second else 0] for column, slots in enumerate(self.pool)])
            inside, outside = [], []
            for probe, identity in zip(probes, p_labels.tolist(), strict=True):
                cosines = centers @ probe
                if identity in column_of:
                    own = column_of[identity]
                    shift = self.margin * F.one_hot(torch.tensor(own), len(self.pool)).double()
                    inside.append(F.cross_entropy(self.scale * (cosines - shift)[None], torch.tensor([own])))
                else:
                    nearest = min(max(int(2e-4 * len(self.pool)), 3), 10)
                    outside.append(sum(max(c, c * 0) for c in sorted(cosines, reverse=True)[:nearest]) / nearest)
            loss = loss + sum(torch.stack(terms).mean() for terms in (inside, outside) if terms)
            self.seen.add("all in" if not outside else "none in" if not inside else "some in")
        return loss

    def _write(self, row: Tensor, identity: int) -> bool:
        """Write a row; return whether the identity was known."""
        for place, (other, column) in enumerate(self.recent):
            if other == identity:
                self.recent.append(self.recent.pop(place))
                slot = self.turn[column]
                self.pool[column][slot], self.turn[column] = row, 1 - slot
                return True
        if len(self.recent) < len(self.pool):
            column = len(self.recent)
        else:
            _, column = self.recent.pop(0)
            self.seen.add("replaced")
        self.recent.append((identity, column))
        self.pool[column][0], self.turn[column] = row, 1
        return False
