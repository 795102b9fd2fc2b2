"""``tokenmill bench``: one measurement a file."""

from tokenmill.cli.bench.group import bench

__all__ = ["bench"]
