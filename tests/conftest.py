"""What several test files need."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Small products are slower on several threads, many times so on a busy machine.

    Torch is not imported for the sake of tests that do without it.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
