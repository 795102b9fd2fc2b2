"""How one operation is computed. ``ops`` is the table; ``reference/`` the plainest PyTorch, which is the truth."""
