"""Kernels, one folder an op: the definition, the kernels, the door."""
