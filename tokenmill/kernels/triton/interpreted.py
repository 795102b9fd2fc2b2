"""Triton's functions without a GPU: its interpreter over tensors in main memory, for tests and rehearsals."""

from __future__ import annotations

import os
from functools import cache
from typing import Any


@cache
def interpret() -> None:
    """Have Triton's functions that are defined from now on interpreted; to be called before they are imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        """The interpreter's scalars are arrays of one number, which numpy from 2.4 on does not make a loop's bounds."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index
