"""Architectures: each family supplies blocks, head and quantiser behind the same ScaleStep contract."""
