"""toprovar: offline calibration and compilation for visual autoregressive image models.

This file imports nothing, so that `import toprovar.profiles` stays cheap on a machine without torch.
"""

__version__ = "0.1.0"
