"""The nouns every other part speaks. Standard library only: no torch, no clock reads, no I/O."""
