"""Knowing: what a model costs in bytes and seconds, and what measurements mean. Pure formulas; no torch, no clock."""
