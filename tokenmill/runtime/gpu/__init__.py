"""Steps on a GPU: a model whose work is launched and not waited for, on buffers that never move."""
