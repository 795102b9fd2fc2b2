"""Triton's functions are interpreted where there is no GPU; that is decided when they are first imported."""

from __future__ import annotations

import torch

from tokenmill.kernels.triton.interpreted import interpret

if not torch.cuda.is_available():
    interpret()
