"""A vision transformer without class token: sine-cosine positions, pre-norm blocks, mean pooling.

Sources: A. Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020; L. Beyer et al., "Better plain ViT baselines for
ImageNet-1k", 2022 (SimpleViT), in the form of the vit-pytorch package (92,502,122 parameters at the published sizes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Head


class Attention(nn.Module):
    """Multi-head self-attention after a norm, (B, T, dim) to the same."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(tokens))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward net, each added to its input; (B, T, dim) to the same."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        self.attention = Attention(dim, heads, head_dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class ViT(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    patch: side of a patch in pixels; dim: width of a token; depth: blocks; heads of head_dim each; mlp_dim: width of
    the feed-forward nets. Raises ValueError for a dim that sine and cosine in x and y can't share, and for sizes of 0.
    """

    def __init__(self, patch: int = 4, dim: int = 2048, depth: int = 8, heads: int = 6, head_dim: int = 64,
                 mlp_dim: int = 2048, classes: int = 10):
        super().__init__()
        if dim < 8 or dim % 4:
            raise ValueError("dim must be a multiple of 4, 8 or more")
        if min(depth, heads, head_dim, mlp_dim) < 1:
            raise ValueError("depth, heads, head_dim and mlp_dim must be 1 or more")
        self.patch = patch
        self.embed = nn.Sequential(nn.LayerNorm(3 * patch**2), nn.Linear(3 * patch**2, dim), nn.LayerNorm(dim))
        # A function of the sizes, not a weight: it stays out of the checkpoints.
        self.register_buffer("positions", sincos_positions(32 // patch, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, head_dim, mlp_dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = Head(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        patches = images.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, 3, h, p1, w, p2)
        tokens = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, h w, p1 p2 c)
        tokens = self.embed(tokens) + self.positions  # (B, T, dim)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def sincos_positions(side: int, dim: int) -> Tensor:
    """Sine-cosine embedding of a side x side grid, float32 (side*side, dim); dim is a multiple of 4, 8 or more."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    omega = 10_000 ** -(torch.arange(dim // 4) / (dim // 4 - 1))
    x, y = x.flatten()[:, None] * omega, y.flatten()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
