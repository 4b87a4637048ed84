"""Adam for a torch module, and both as named arrays and back."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from musketeers.group import group

_MOMENTS = "exp_avg", "exp_avg_sq", "step"


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) for all parameters of a module, by torch's fused step.

    The step is that of `torch.optim.AdamW` without decay.  An object of that class imports torch's
    compiler, for which each process would wait longer than small data take to train.
    """

    def __init__(self, module: nn.Module, *, learning_rate: float) -> None:
        self._weights, self._rate = dict(module.named_parameters()), learning_rate
        self._moments = {
            name: (torch.zeros_like(weight), torch.zeros_like(weight), weight.new_zeros(()))
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Let each parameter that has a gradient follow it."""
        learning = [
            (weight, weight.grad, *self._moments[name])
            for name, weight in self._weights.items()
            if weight.grad is not None
        ]
        weights, slopes, means, squares, steps = map(list, zip(*learning, strict=True))
        adamw(
            weights, slopes, means, squares, [], steps,
            lr=self._rate, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=0, amsgrad=False, maximize=False, fused=True,
        )  # fmt: skip

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the weights and of their moments, which are zeros before the first step."""
        arrays = dict[str, np.ndarray]()
        for name, weight in self._weights.items():
            arrays[name] = _numbers(weight)
            for moment, value in zip(_MOMENTS, self._moments[name], strict=True):
                arrays[f"{name}/{moment}"] = _numbers(value)
        return arrays

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave, as copies."""
        for name, weight in self._weights.items():
            weight.copy_(torch.from_numpy(state[name]))
            for moment, value in zip(_MOMENTS, self._moments[name], strict=True):
                value.copy_(torch.from_numpy(state[f"{name}/{moment}"]))


def add_slopes(module: nn.Module) -> None:
    """Give every member the sum of all members' gradients."""
    group().add(*(weight.grad.numpy() for weight in module.parameters() if weight.grad is not None))


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The weights alone, as copies."""
    return {name: _numbers(weight) for name, weight in module.named_parameters()}


def _numbers(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().copy()
