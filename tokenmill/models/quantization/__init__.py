"""How the weights of a linear layer are stored and applied: a scheme a file, behind ``base.LinearMethod``."""
