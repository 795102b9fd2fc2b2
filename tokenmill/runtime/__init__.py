"""Carrying out a step: plan → tensors → model → tokens. Imports torch; decides nothing."""
