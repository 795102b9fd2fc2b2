"""Fitted parameters that ship; ``tools/calibration`` writes them."""
