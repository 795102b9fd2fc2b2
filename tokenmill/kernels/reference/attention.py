"""Attention."""

from __future__ import annotations


class AttentionPlan:
    pass
