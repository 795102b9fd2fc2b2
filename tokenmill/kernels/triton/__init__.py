"""Kernels for GPUs in Triton: one source for NVIDIA and AMD, held to ``kernels/reference``.

==========================  ==================================================================================
``attention*.py``           paged attention, ragged: prompt chunks and single tokens in one call
``linear*.py``              matrix products: plain, with weights of 4 and 8 bits, float8; ``quantize.py`` packs
``experts.py``              the products of a mixture of experts, grouped by expert
``rope_kv.py``              norm per head, rotation, and the write to the KV cache (``kv.py``), in one pass
``rms_norm.py``             norm, with the residual added on the way
``swiglu.py``               the gated activation
``embedding.py``            rows of a table
``sample*.py``              penalties, filters and the seeded draw: from logits to tokens
``fp8.py``, ``device.py``   float8 on any chip; what launches must know of the chip
==========================  ==================================================================================

Rules that all launches keep, so that a step can be captured as a graph and replayed:

- results go to tensors that the caller gives; grids depend on shapes alone; what changes from step to step (how many
  tokens there are, positions, slots) is read on the device; nothing waits for the device.
- numbers are loaded in bf16 (or less), worked on in float32 and rounded once.
- a row's result does not depend on the other rows, unless a function says otherwise: how a row is cut into tiles, and
  in which order parts are added up, depends on its own shape.

**Tests** (``tests/triton``) need no GPU. Triton's interpreter runs the kernels on small tensors in main memory and the
results are compared with the reference; where there is a GPU the same tests run on it. And every launch is compiled for
Hopper at the shapes of real models (``python -m tests.triton.dry dry_sample``), which must spill no registers.
"""
