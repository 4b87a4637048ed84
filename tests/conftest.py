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


def pytest_ignore_collect(collection_path, config):
    """Of a group that is asked for alone, files without it are not imported: some take seconds."""
    if config.option.markexpr == "ray" and collection_path.name.startswith("test_"):
        return "mark.ray" not in collection_path.read_text(encoding="utf-8") or None
    return None


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


@pytest.fixture(params=["float32", "float16"])
def kept_as(request, monkeypatch):
    """How lanes keep items, whatever the table's size."""
    from musketeers.instructions import has_float16
    from musketeers.pretrain import lanes

    if request.param == "float16":
        if not has_float16():
            pytest.skip("this processor has no float16")
        monkeypatch.setattr(lanes, "LARGE", 0)
    return request.param
