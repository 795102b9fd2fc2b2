"""Triton kernels on whatever is there: an NVIDIA GPU, or Triton's interpreter over tensors in main memory.

The interpreter is chosen when Triton's functions are defined, so it has to be asked for before anything imports them.
"""

from __future__ import annotations

import pytest
import torch

from tokenmill.kernels.triton.interpreted import interpret

HAVE_GPU = torch.cuda.is_available()
if not HAVE_GPU:
    interpret()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")
    return torch.device("cuda" if HAVE_GPU else "cpu")
