"""Adam as our networks use it, against torch's own."""

import subprocess
import sys

import numpy as np
import torch
from torch import nn

from musketeers.modules import Adam


def network():
    made = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight.copy_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(number)))
    return made


def follow(module, step, steps):
    """In each step every parameter has a gradient, but for the last in every other one."""
    for number in steps:
        noise = torch.Generator().manual_seed(100 + number)
        for weight in module.parameters():
            weight.grad = torch.randn(weight.shape, generator=noise)
        if number % 2:
            module[1].bias.grad = None
        step()


def weights(module):
    return [weight.detach().numpy().copy() for weight in module.parameters()]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_steps_are_bit_by_bit_those_of_torch():
    ours, theirs = network(), network()
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0, fused=True)
    follow(ours, Adam(ours, learning_rate=0.01).step, range(20))
    follow(theirs, adam.step, range(20))
    assert same(weights(ours), weights(theirs))
    assert not same(weights(ours), weights(network()))


def test_from_a_state_it_goes_on_as_if_nothing_had_been():
    whole, first, second = network(), network(), network()
    follow(whole, Adam(whole, learning_rate=0.01).step, range(20))
    before, after = Adam(first, learning_rate=0.01), Adam(second, learning_rate=0.01)
    follow(first, before.step, range(7))
    state = before.state()
    # copies: what is learned afterwards does not change them
    follow(first, before.step, range(7, 9))
    after.restore(state)
    follow(second, after.step, range(7, 20))
    assert same(weights(second), weights(whole))


def test_before_the_first_step_moments_are_zeros():
    state = Adam(network(), learning_rate=0.01).state()
    assert len(state) == 4 * 4
    assert not any(value.any() for name, value in state.items() if "/" in name)


def test_no_process_waits_for_torchs_compiler():
    words = (
        "import sys\nfrom torch import nn\nfrom musketeers.modules import Adam\n"
        "net = nn.Linear(2, 2)\nadam = Adam(net, learning_rate=0.1)\n"
        "net(net.weight).sum().backward()\nadam.step()\nadam.restore(adam.state())\n"
        "print([name for name in sys.modules if name.startswith('torch._dynamo')])\n"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
