"""AdamW with amsgrad: torch's kernels and results, without what torch.optim costs at the start.

The first step of a torch.optim optimizer imports torch's compiler, which takes about as long as torch itself and serves nothing here.
"""

import torch
from torch import Tensor
from torch.optim import adamw as kernels

from ..config import Config

STATE = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")  # as torch's function calls them


def adamw(groups: list[dict], config: Config) -> "AdamW":
    """AdamW with amsgrad, the published optimizer."""
    return AdamW(groups, config.learning_rate)


class AdamW:
    """AdamW with amsgrad, betas (0.9, 0.999) and eps 1e-8, by torch's fused kernels: bit for bit as torch.optim.AdamW.

    param_groups: mappings with `params` (tensors on one device, each of which gets a gradient), `weight_decay` and `lr`, a float or, on
    CUDA, a tensor. Sources: I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019; S. Reddi et al., "On the
    Convergence of Adam and Beyond", 2018.
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
            params = group["params"]
            lists = {"params": params, "grads": [p.grad for p in params], **state}
            kernels.adamw(**{name: _as_stored(tensors, params) for name, tensors in lists.items()}, fused=True, amsgrad=True, beta1=0.9, beta2=0.999,
                          eps=1e-8, lr=group["lr"], weight_decay=group["weight_decay"], maximize=False)

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
