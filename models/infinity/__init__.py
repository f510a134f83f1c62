"""Infinity (arXiv 2412.04431): bitwise visual autoregressive modelling, as released in FoundationVision/Infinity.

Module and parameter names are the official ones, so that a released checkpoint loads key by key.
"""
