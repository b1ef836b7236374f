"""Steps whose numbers are not to be trusted."""

from __future__ import annotations

import math

from orchestrate.errors import RunFailed
from orchestrate.local.job import Hyper, option
from orchestrate.local.run.checkpoints import Progress
from orchestrate.local.run.rundir import RunDir

MOST_SKIPPED = 10
"""Steps skipped one after the other before the run is given up."""


class Guard:
    def __init__(self, run: RunDir, hyper: Hyper) -> None:
        self.run, self.hyper, self.skipped = run, hyper, 0

    def acceptable(self, loss: float, norm: float, progress: Progress) -> bool:
        """Whether the step may change the weights. Raises `RunFailed` when it may not and the policy says
        stop."""
        mean, factor = progress.loss_mean, self.hyper.spike_factor
        if math.isfinite(loss) and math.isfinite(norm):
            if not (factor and mean is not None and progress.step > 20 and loss > factor * mean):
                self.skipped = 0
                return True
            what = f"the loss jumped to {loss:.3g} (running mean {mean:.3g})"
        else:
            what = f"loss {loss:.3g} or gradient norm {norm:.3g} is not finite"
            if self.hyper.nan_policy == "stop":
                raise RunFailed(
                    f"step {progress.step + 1}: {what}",
                    fix="lower the learning rate, check the rows (orchestrate data check), "
                    f"or set {option('nan_policy')}: skip",
                )
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise RunFailed(f"{self.skipped} steps in a row were skipped; the last because {what}")
        self.run.add_event(
            f"step {progress.step + 1} was skipped: {what}",
            level="warning",
            type="skipped",
            step=progress.step + 1,
        )
        return False
