"""The training engine of this machine. Its workers run in separate processes, and only they import torch.

`launch` starts a job, `RunDir` reads and steers it, `Generator` asks a model; all three need no torch here.

The road of a training run, in the order in which its code runs:

1. Configuration. `job.py`: `LocalJob` is what to train, checked. `run/launching.py` writes it into a run
   directory (`run/__init__.py`: job, state, events, metrics, pause and cancel) and starts the worker.
2. `run/worker.py` is the worker: it takes the run's lock, opens a `Session` and tells how it ended.
3. Model. `run/session.py` loads base and adapter (`model/loading.py`; precision and accelerators by
   `model/__init__.py` and `model/shortcuts/`), the optimizer (`run/optimizers.py`) and the schedule.
4. Rows. The session reads the canonical rows of the data engine, `encoding/__init__.py` turns each into
   tokens by the model's chat template with a weight for each token (what is learned), and
   `encoding/encoded.py` keeps them in one block (`Rows`).
5. Batches. `objectives/base.py` puts rows of like length together, up to as many tokens as memory takes;
   `objectives/` has a module for each kind of method (SFT in base; DPO, KTO; GRPO): rows in, gradients out.
6. Loop. `run/loop.py`: a step asks the objective for gradients, clips, steps, writes metrics, evaluates,
   looks for pause and cancel, halves the batch where memory runs out (`model/loaded.py`).
7. Checkpoint. `run/checkpoints.py` writes weights, optimizer, random numbers and place in the data, whole or
   not at all; a run goes on from the newest whole one, to the bit.
8. Result. `run/export.py` writes the adapter or the model and its provenance, `proof/` what it is known by.

Several processes: `run/parallel.py` (whole model in each), `run/sharding.py` (a share in each).

Answers take another road, the same for chat, eval, serve and the sandbox. `answers/generation.py` (a client)
or `serving/server/engine.py` (a server) starts `answers/process.py`. It loads a model (`answers/loading.py`),
generates (`model/sampling/batching.py`, the only loop, which GRPO uses within its worker) and reads what was
said (`answers/speech.py`, `data/tokens/answers.py`). `weights/__init__.py` asks for work with weights: merge,
convert, prove. All children talk as `orchestrate.core.child` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator
    from orchestrate.local.job import AdapterSettings, Hyper, LocalJob
    from orchestrate.local.run import JobState, RunDir
    from orchestrate.local.run.launching import launch, resume

__all__ = ["AdapterSettings", "Generator", "Hyper", "LocalJob", "RunDir", "JobState", "launch", "resume"]

_HOMES = {
    "Generator": "answers.generation",
    "launch": "run.launching",
    "resume": "run.launching",
    "AdapterSettings": "job",
    "Hyper": "job",
    "LocalJob": "job",
    "RunDir": "run",
    "JobState": "run",
}


__getattr__ = late(__name__, _HOMES)
