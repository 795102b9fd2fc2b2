"""Reading checkpoints: formats, and the checks without which a file from elsewhere is not opened."""
