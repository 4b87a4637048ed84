"""What several test files need."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# without NVIDIA's driver, what is written for a GPU is interpreted; said before it is imported
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# the first example of a test may have to wait for the compiler
settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Small products are slower on several threads, many times so on a busy machine.

    Torch is not imported for the sake of tests that do without it.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of three domains, in memory and in a folder; tests may read it."""
    from serving import fitted

    return fitted(tmp_path_factory.mktemp("finished"))
