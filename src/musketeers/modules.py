"""A torch module and its optimiser as named arrays, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from musketeers.group import group

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def state_of(module: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, np.ndarray]:
    """Weights and Adam moments; before the first step the moments are zeros."""
    arrays: dict[str, np.ndarray] = {}
    for name, weight in module.named_parameters():
        arrays[name] = _numbers(weight)
        moments: dict[str, Any] = optimizer.state.get(weight, {})
        for moment in _MOMENTS:
            value = moments.get(moment, torch.zeros_like(weight) if moment != "step" else None)
            arrays[f"{name}/{moment}"] = _numbers(value)
    return arrays


def restore(
    module: nn.Module, optimizer: torch.optim.AdamW, state: Mapping[str, np.ndarray]
) -> None:
    """Take over what `state_of` gave, as copies."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.from_numpy(state[name]))
            moments = {n: torch.from_numpy(state[f"{name}/{n}"].copy()) for n in _MOMENTS}
            # Adam keeps its count of steps on the processor
            optimizer.state[weight] = {
                n: moment if n == "step" else moment.to(weight.device)
                for n, moment in moments.items()
            }


def add_slopes(module: nn.Module) -> None:
    """Give every member the sum of all members' gradients."""
    group().add(*(weight.grad.numpy() for weight in module.parameters() if weight.grad is not None))


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The weights alone, as copies."""
    return {name: _numbers(weight) for name, weight in module.named_parameters()}


def _numbers(value: torch.Tensor | None) -> np.ndarray:
    return np.zeros((), np.float32) if value is None else value.detach().cpu().numpy().copy()
