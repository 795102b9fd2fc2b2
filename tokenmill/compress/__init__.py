"""Making models smaller, and telling what that costs. Quantisation on loading lives with the weights (``models``)."""
