"""One engine a file, each run as a program inside that engine's environment.

Peers are imported by name at run time, for they are not installed where this package is. Each is given its own fast
settings, those that its makers' benchmarks use; what differs from engine to engine is said in the file.
"""
