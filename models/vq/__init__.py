"""The multi-scale VQVAE of VAR (arXiv 2404.02905), which HART shares, with the official parameter names."""
