"""The optimizers: functions from parameter groups and a configuration to an object with torch.optim's interface.

A step of each can be captured in a CUDA graph: its learning rate may be a tensor on the GPU, which it never reads back.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from ..config import Config
from ..device import pick_precision


def adamw(groups: list[dict], config: Config) -> AdamW:
    """AdamW with amsgrad, the published optimizer."""
    return AdamW(groups, config.learning_rate, amsgrad=True, fused=True, capturable=True)


def sgd(groups: list[dict], config: Config) -> SGD:
    """Gradient descent with Nesterov momentum; weight decay is added to the gradient, as torch does it."""
    # Of torch's kernels only CUDA's fused one reads a learning rate on the GPU without waiting for it.
    fused = _device(groups).type == "cuda"
    return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=fused)


def muon(groups: list[dict], config: Config) -> "Together":
    """Muon for weight matrices and kernels, in the run's precision, and AdamW as above for all other weights."""
    matrices, others = _those(groups, lambda p: p.ndim > 1), _those(groups, lambda p: p.ndim <= 1)
    first = Muon(matrices, config.learning_rate, config.momentum, _dtype(groups, config))
    return Together(first, adamw(others, config))


def muon_sgd(groups: list[dict], config: Config) -> "Together":
    """Muon for convolutions, in the run's precision, whose kernels keep their norm; SGD for all other weights.

    SGD has Nesterov momentum 0.85 and rates of its own, for gradients summed over a batch: with those another batch
    size needs no other rates. Weight decay takes its part of the weights for each image. Source: K. Jordan, "airbench",
    2024.
    """
    kernels, others = _those(groups, lambda p: p.ndim > 3), []
    for rate, chosen in ((config.head_lr, lambda p: p.ndim in (2, 3)), (config.vector_lr, lambda p: p.ndim < 2)):
        lr = rate * config.batch_size  # of gradients that are means
        others += [{**group, "weight_decay": group["weight_decay"] / rate, "lr": lr,
                    "lr_scale": lr / config.learning_rate} for group in _those(groups, chosen)]
    first = Muon(kernels, config.learning_rate, config.momentum, _dtype(groups, config), steps=3, keep_norm=True)
    fused = _device(groups).type == "cuda"
    return Together(first, SGD(others, config.learning_rate, 0.85, nesterov=True, fused=fused))


def _those(groups: list[dict], chosen: Callable[[Tensor], bool]) -> list[dict]:
    """The groups with the chosen ones of their weights, which may be none."""
    return [{**group, "params": [p for p in group["params"] if chosen(p)]} for group in groups]


def _dtype(groups: list[dict], config: Config) -> torch.dtype:
    """Of the matrices that are made orthogonal: the run's precision."""
    return torch.bfloat16 if pick_precision(config.precision, _device(groups)) == "bf16" else torch.float32


def _device(groups: list[dict]) -> torch.device:
    return next(p.device for group in groups for p in group["params"])


class Muon(Optimizer):
    """Steps along Nesterov momentum with its singular values made about one, and decoupled weight decay.

    torch.optim.Muon, which takes 2-d weights, for kernels too: (out, in, k, k) is the matrix (out, in * k * k).
    Matrices of one shape are multiplied together, in `dtype`. Steps are scaled to the size of AdamW's (torch's
    "match_rms_adamw"), so that its learning rates and weight decays can be used again. With `keep_norm` each weight is
    scaled to a norm of sqrt(out) before a step, and that is as large as the learning rate, without weight decay.
    Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., "Muon is
    Scalable for LLM Training", 2025.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, dtype: torch.dtype, steps: int = 5,
                 keep_norm: bool = False):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.dtype, self.steps, self.keep_norm = dtype, steps, keep_norm
        self.state |= {p: {"momentum": torch.zeros_like(p)} for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                matrices = torch.stack([self._look_ahead(p, group["momentum"]) for p in params])  # (N, out, inputs)
                # The root mean square is 0.2 in AdamW's steps, 1/sqrt(longer side) of orthonormal rows or columns.
                scale = 1.0 if self.keep_norm else 0.2 * math.sqrt(max(matrices.shape[1:]))
                for p, matrix in zip(params, orthogonal(matrices, self.steps)):
                    if self.keep_norm:
                        p.mul_(math.sqrt(len(p)) / p.norm())
                    else:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(matrix.to(p.dtype).reshape(p.shape) * (group["lr"] * scale))

    def _look_ahead(self, p: Tensor, momentum: float) -> Tensor:
        """The mean of the gradients, this one counted twice as Nesterov has it, as a matrix (out, inputs)."""
        mean = self.state[p]["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum).flatten(1).to(self.dtype)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (N, rows, columns) with singular values between about 0.7 and 1.2, and the singular vectors they had.

    Newton-Schulz steps with K. Jordan's polynomial, which climbs steeply from zero but doesn't settle at one. After
    three of them instead of five the smallest singular values are still smaller.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT, steps).mT
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=3.4445)
    return matrices


class Together:
    """Optimizers that share a model's weights among them, as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, saved: list) -> None:
        for optimizer, state in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(state)
