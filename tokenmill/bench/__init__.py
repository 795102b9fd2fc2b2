"""Measuring: this machine, and servers under load. A result is a file with machine, versions and command."""
