"""VAR (arXiv 2404.02905): class-conditional visual autoregressive modelling, as released in FoundationVision/VAR.

Module and parameter names are the official ones, so that a released checkpoint loads key by key.
"""
