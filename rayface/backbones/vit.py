"""Vision transformers in the variants of Partial FC (arXiv 2203.15565).

Patches of 9 x 9 pixels, pre-norm blocks with a ReLU6 MLP, no class token: the normalised tokens are flattened into one
vector and mapped to the embedding. In training a fraction of the tokens is masked: the blocks skip them, and a learned
mask token replaces them (as in masked autoencoders, arXiv 2111.06377). Residual branches are dropped at random per
image (stochastic depth, arXiv 1603.09382). Names and shapes of the state dict are those of arcface_torch.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rayface.backbones.precision import full_precision
from rayface.backbones.recompute import recomputed

PATCH_SIZE = 9


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, C); queries, keys and values without bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))


class MLP(nn.Module):
    """Two linear layers with a hidden size of four times the width and a ReLU6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; each residual branch is dropped per image with probability `drop_path`."""

    def __init__(self, width: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._sometimes(self.attn(self.norm1(x)))
        return x + self._sometimes(self.mlp(self.norm2(x)))

    def _sometimes(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)  # keeps the expectation equal to that in evaluation


class PatchEmbedding(nn.Module):
    """Images (N, 3, S, S) -> one token per 9 x 9 patch, (N, (S // 9)^2, width); a remainder at the edge is cropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    `tokens_width` channels (times `width`, rounded to a multiple of the heads) and `depth` blocks. In training
    `mask_ratio` is the fraction of masked tokens, and the probability of dropping a block's branches rises linearly
    from 0 to `drop_path`; `dropout` is applied before the embedding's first linear layer. `checkpointing` recomputes
    each block in the backward pass.
    """

    def __init__(
        self,
        tokens_width: int,
        depth: int,
        *,
        num_heads: int = 8,
        embedding_size: int = 512,
        image_size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_rate("drop_path", drop_path)
        _check_rate("mask_ratio", mask_ratio)
        channels = num_heads * max(1, round(tokens_width * width / num_heads))
        num_tokens = (image_size // PATCH_SIZE) ** 2
        self.mask_ratio = mask_ratio
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbedding(channels)
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, channels))
        # Unused without masking; DistributedDataParallel would wait for the gradient of an unused parameter.
        self.mask_token = nn.Parameter(torch.empty(1, 1, channels), requires_grad=mask_ratio > 0)
        self.blocks = nn.ModuleList(Block(channels, num_heads, drop_path * i / max(1, depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.feature = nn.Sequential(
            nn.Linear(channels * num_tokens, channels, bias=False),
            nn.BatchNorm1d(channels, eps=2e-5),
            nn.Linear(channels, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images) + self.pos_embed
        masking = self.training and self.mask_ratio > 0
        if masking:
            x, order = self._keep_some(x)
        for block in self.blocks:
            x = recomputed(block, x) if self.checkpointing and self.training else block(x)
        with full_precision(x):
            x = self.norm(x.to(self.norm.weight.dtype))
            if masking:
                x = self._fill_gaps(x, order)
            return self.feature(self.dropout(x.flatten(1)))

    def _keep_some(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a random selection of tokens (N, K, C) per image, and its order (N, T), kept tokens first."""
        n, t, c = x.shape
        order = torch.rand(n, t, device=x.device).argsort(dim=1)
        kept = order[:, : max(1, int(t * (1 - self.mask_ratio)))]
        return x.gather(1, kept[:, :, None].expand(-1, -1, c)), order

    def _fill_gaps(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Scatter the kept tokens (N, K, C) to their positions and fill the others with the mask token: (N, T, C)."""
        (n, t), c = order.shape, x.shape[2]
        kept = order[:, : x.shape[1], None].expand(-1, -1, c)
        return self.mask_token.to(x.dtype).expand(n, t, c).scatter(1, kept, x)


def _check_rate(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"backbone.{field} {value} must be in [0, 1)")
