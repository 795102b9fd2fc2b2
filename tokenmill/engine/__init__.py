"""Deciding: which tokens to compute next, in which KV blocks. Knows no device, no torch, no wall clock."""
