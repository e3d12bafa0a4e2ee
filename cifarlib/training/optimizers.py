"""The optimizers: functions from parameter groups and a configuration to an object with torch.optim's interface.

Steps of all three are captured in CUDA graphs: the learning rate may be a tensor on the GPU, which none of them reads back.
"""

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
    """Gradient descent with Nesterov momentum; as usual in torch, weight decay is added to the gradient, and so to the momentum."""
    # Only torch's fused kernel takes a learning rate from the GPU. The CPU's is wrong where a gradient lies otherwise than its weight.
    fused = _device(groups).type == "cuda"
    return SGD(groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=fused)


def muon(groups: list[dict], config: Config) -> "Together":
    """Muon for weight matrices and kernels, in the run's precision, and AdamW as above for all other weights."""
    matrices, others = ([{**group, "params": [p for p in group["params"] if (p.ndim > 1) == wanted]} for group in groups]
                        for wanted in (True, False))
    precision = pick_precision(config.precision, _device(groups))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Together(Muon(matrices, config.learning_rate, config.momentum, dtype), adamw(others, config))


def _device(groups: list[dict]) -> torch.device:
    return next(p.device for group in groups for p in group["params"])


class Muon(Optimizer):
    """Steps along Nesterov's momentum with all its singular values made about one, decoupled weight decay.

    As torch.optim.Muon, which takes 2-d weights only: a kernel (out, in, k, k) is the matrix (out, in * k * k) here, and matrices of one
    shape are multiplied together, in `dtype`. Its updates are as large as AdamW's, whose learning rates and decays so serve it as well.
    Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., "Muon is Scalable for LLM
    Training", 2025.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, dtype: torch.dtype):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.dtype = dtype
        self.state |= {p: {"momentum": torch.zeros_like(p)} for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for params in alike.values():
                directions = orthogonal(torch.stack([self._direction(p, group["momentum"]) for p in params]))  # (N, out, inputs)
                size = 0.2 * math.sqrt(max(directions.shape[1:]))  # root mean square of an AdamW update, for orthonormal rows or columns
                for p, direction in zip(params, directions):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(direction.to(p.dtype).reshape(p.shape) * (group["lr"] * size))

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        """The momentum after this gradient, once more ahead as Nesterov has it, as a matrix (out, inputs)."""
        buffer = self.state[p]["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum).flatten(1).to(self.dtype)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) with their singular values brought to between 0.7 and 1.2, by five steps of Newton and Schulz.

    K. Jordan's polynomial: it climbs steeply from zero, at the price of not ending exactly at one.
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

    The first step of a torch.optim optimizer imports torch's compiler, which takes about as long as torch itself and serves nothing here.
    param_groups: mappings with `params` (tensors on one device), `weight_decay` and `lr`, a float or, on CUDA, a tensor.
    Sources: I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019; S. Reddi et al., "On the Convergence of Adam and
    Beyond", 2018.
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
            used = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            params = [group["params"][i] for i in used]
            lists = {"params": params, "grads": [p.grad for p in params]}
            lists |= {name: [tensors[i] for i in used] for name, tensors in state.items()}
            kernels.adamw(**{name: _as_stored(tensors, params) for name, tensors in lists.items()}, fused=True, amsgrad=True,
                          beta1=0.9, beta2=0.999, eps=1e-8, lr=group["lr"], weight_decay=group["weight_decay"], maximize=False)

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
    """Channels-last views of what belongs to a parameter stored channels last; torch's CPU kernel would copy them first."""
    return [t.permute(0, 2, 3, 1) if p.ndim == t.ndim == 4 and not p.is_contiguous() else t for t, p in zip(tensors, params, strict=True)]
