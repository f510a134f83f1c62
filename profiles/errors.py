"""The errors a user can cause, each a `ValueError` whose message names the thing, what came, and the remedy.

Every command prints them as one line and exits with 2; anything else that escapes is our bug and keeps its traceback.
"""


class ToprovarError(ValueError):
    """A user's mistake: bad input, a file that does not fit, a target that cannot be met."""


class ProfileError(ToprovarError):
    """A model profile that cannot be read or contradicts itself."""


class ScheduleError(ToprovarError):
    """A schedule that cannot be read, contradicts itself, or does not fit its model."""


class MeasurementError(ToprovarError):
    """Calibration measurements that cannot be read, merged or used for this model."""


class PromptError(ToprovarError):
    """A prompt source that is missing, empty, binary or lacks the asked column."""


class CheckpointError(ToprovarError):
    """Weights that are missing, damaged, or whose names and shapes differ from the model's."""


class BundleError(ToprovarError):
    """An engine bundle that is incomplete, corrupted or made for something else."""


class CostError(ToprovarError):
    """A table of measured times that cannot be read, or does not hold the point that is asked for."""
