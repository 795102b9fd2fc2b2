"""The parts decoders are made of. Each owns its weights, says where a checkpoint puts them, and computes."""
