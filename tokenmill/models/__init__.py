"""What is computed: decoders made from a ``ModelConfig``, and how checkpoints fill them."""
