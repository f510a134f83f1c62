"""HART (arXiv 2410.10812): hybrid visual autoregressive modelling, as released in mit-han-lab/hart.

Discrete tokens at every scale, and at the last one a small diffusion head that adds what the codebook cannot say. Module and
parameter names are the official ones, so that a released checkpoint loads key by key.
"""
