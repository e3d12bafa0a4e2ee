"""The optimizers: functions from parameter groups and a configuration to an object with torch.optim's interface.

A step of each can be captured in a CUDA graph: its learning rate may be a tensor on the GPU, which it never reads back.
"""

import itertools
import math
from collections import defaultdict

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import adamw as kernels

from ..config import Config
from ..device import pick_precision

STATE = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")  # as torch's function calls them


def adamw(groups: list[dict], config: Config) -> "AdamW":
    """AdamW with amsgrad, the published optimizer."""
    return AdamW(groups, config.learning_rate)


def sgd(groups: list[dict], config: Config) -> SGD:
    """Gradient descent with Nesterov momentum; weight decay is added to the gradient, as torch does it."""
    # Of torch's kernels only CUDA's fused one reads a learning rate on the GPU without waiting for it.
    fused = _device(groups).type == "cuda"
    return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=fused)


def muon(groups: list[dict], config: Config) -> "Together":
    """Muon for weight matrices and kernels, in the run's precision, and AdamW as above for all other weights."""
    matrices = [{**group, "params": [p for p in group["params"] if p.ndim > 1]} for group in groups]
    others = [{**group, "params": [p for p in group["params"] if p.ndim <= 1]} for group in groups]
    precision = pick_precision(config.precision, _device(groups))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Together(Muon(matrices, config.learning_rate, config.momentum, dtype), adamw(others, config))


def _device(groups: list[dict]) -> torch.device:
    return next(p.device for group in groups for p in group["params"])


class Muon(Optimizer):
    """Steps along Nesterov momentum with its singular values made about one, and decoupled weight decay.

    torch.optim.Muon, which takes 2-d weights, for kernels too: (out, in, k, k) is the matrix (out, in * k * k).
    Matrices of one shape are multiplied together, in `dtype`. Steps are scaled to the size of AdamW's (torch's
    "match_rms_adamw"), so that its learning rates and weight decays can be used again. Sources: K. Jordan et al.,
    "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., "Muon is Scalable for LLM
    Training", 2025.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, dtype: torch.dtype):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.dtype = dtype
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
                scale = 0.2 * math.sqrt(max(matrices.shape[1:]))
                for p, matrix in zip(params, orthogonal(matrices)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(matrix.to(p.dtype).reshape(p.shape) * (group["lr"] * scale))

    def _look_ahead(self, p: Tensor, momentum: float) -> Tensor:
        """The mean of the gradients, this one counted twice as Nesterov has it, as a matrix (out, inputs)."""
        mean = self.state[p]["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum).flatten(1).to(self.dtype)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) with singular values between about 0.7 and 1.2, and the singular vectors they had.

    Five Newton-Schulz steps with K. Jordan's polynomial, which climbs steeply from zero but doesn't settle at one.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
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

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, saved: list) -> None:
        for optimizer, state in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(state)


class AdamW:
    """AdamW with amsgrad, betas (0.9, 0.999) and eps 1e-8, by torch's fused kernels: bit for bit as torch.optim.AdamW.

    At its first use torch.optim imports torch's compiler, which takes about as long as torch itself and serves nothing
    here. param_groups: mappings with `params` (tensors on one device), `weight_decay` and `lr`, a float or, on CUDA, a
    tensor. Sources: I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019; S. Reddi et al., "On
    the Convergence of Adam and Beyond", 2018.
    """

    def __init__(self, param_groups: list[dict], lr: float):
        self.param_groups = [{"lr": lr, **group} for group in param_groups]
        self.state = [self._zeros(group["params"]) for group in self.param_groups]

    @staticmethod
    def _zeros(params: list[Tensor]) -> dict[str, list[Tensor]]:
        zeros = {name: [torch.zeros_like(p) for p in params] for name in STATE[:-1]}
        return zeros | {STATE[-1]: [torch.zeros((), device=p.device) for p in params]}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group, state in zip(self.param_groups, self.state):
            used = [p.grad is not None for p in group["params"]]
            lists = {"params": group["params"], "grads": [p.grad for p in group["params"]], **state}
            lists = {name: [*itertools.compress(tensors, used)] for name, tensors in lists.items()}
            lists = {name: _as_stored(tensors, lists["params"]) for name, tensors in lists.items()}
            kernels.adamw(**lists, fused=True, amsgrad=True, beta1=0.9, beta2=0.999, eps=1e-8, lr=group["lr"],
                          weight_decay=group["weight_decay"], maximize=False)

    def state_dict(self) -> list[dict[str, list[Tensor]]]:
        """Of each group the lists of tensors that the next step builds on; the learning rate is the schedule's."""
        return self.state

    @torch.no_grad()
    def load_state_dict(self, saved: list[dict[str, list[Tensor]]]) -> None:
        for own, other in zip(self.state, saved, strict=True):
            for name in STATE:
                for into, tensor in zip(own[name], other[name], strict=True):
                    into.copy_(tensor)


def _as_stored(tensors: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Views in the order in which the parameters lie in memory, since torch's CPU kernel would copy others first."""
    return [tensor.permute(0, 2, 3, 1) if p.ndim == tensor.ndim == 4 and not p.is_contiguous() else tensor
            for tensor, p in zip(tensors, params, strict=True)]
