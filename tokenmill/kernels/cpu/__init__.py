"""Kernels for the CPU in C++ (``src/``), and what the host needs to call them.

- ``isa``: which instruction sets the processor has, and which flags a library for each is built with;
- ``build``: sources to a shared library, once per machine and version, kept in a cache folder;
- ``library``: the loaded library and its pool of threads;
- ``records``: the plain records that cross, as ``src/kernels.h`` declares them;
- ``memory``: buffers in huge pages;
- ``packing``: matrices to the panels that the kernels read;
- ``program``: a list of kernel calls on fixed buffers, run by one call.

No header of PyTorch is used and no tensor crosses: kernels get addresses, so any version of PyTorch will do.
"""
