"""The training engine for this machine. Its workers run in separate processes, and only they import torch.

`launch` starts a job, `RunDir` reads and controls it, `Generator` queries a model. None of them needs torch.

The stages of a training run, in order:

1. Configuration. `job.py`: `LocalJob` is the validated job. `run/launcher.py` writes it into a run directory
   (`run/__init__.py`: job, state, events, metrics, pause and cancel) and starts the worker.
2. Worker. `run/worker.py` takes the run's lock, opens a `Session` and reports the outcome.
3. Model. `run/session.py` loads the base model and the adapter with `model/loader.py`. `model/__init__.py`
   chooses the engine and the precision, and `model/shortcuts/` turns on optimizations.
4. Rows. The session reads canonical rows from the data engine. `encoding/__init__.py` tokenizes each row with
   the model's chat template and gives each token a loss weight. `encoding/encoded.py` stores all rows in one
   block (`EncodedRows`).
5. Batches. `objectives/base.py` groups rows of similar length, up to the number of tokens that fits in
   memory. `objectives/` has one module per family of methods (SFT in `base`, DPO and KTO in `dpo`, GRPO in
   `grpo`). Each computes gradients from rows.
6. Loop. `run/loop.py` creates the optimizer (`run/optimizers.py`) and follows the schedule
   (`run/schedule.py`). Each step gets the gradients from the objective, clips them, updates the weights,
   writes metrics, evaluates, and checks for pause and cancel requests. If memory runs out, the loop halves
   the batch (`model/loaded.py`).
7. Checkpoint. `run/checkpoints.py` atomically writes the weights, the optimizer state, the random state and
   the position in the data. A run resumes from the newest complete checkpoint, bit for bit.
8. Result. `run/export.py` writes the adapter or the model with its provenance. `proof/` builds the
   fingerprint.

To train with several processes, `run/parallel.py` puts a full model in each process, and `run/sharding.py`
puts a shard in each.

Inference uses the same code for chat, eval, serve and the sandbox. `answers/generation.py` (a client) or
`serving/server/engine.py` (a server) starts `answers/process.py`. It loads a model
(`answers/model_loader.py`), generates (`model/sampling/batching.py`, the only loop, which GRPO also uses
within its worker) and parses the answer (`answers/speech.py`, `data/tokens/answers.py`).
`weights/__init__.py` starts tasks on weights: merge, convert, fingerprint. All child
processes use the protocol in `orchestrate.core.child`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator
    from orchestrate.local.job import AdapterSettings, Hyper, LocalJob
    from orchestrate.local.run import JobState, RunDir
    from orchestrate.local.run.launcher import launch, resume

__all__ = ["AdapterSettings", "Generator", "Hyper", "LocalJob", "RunDir", "JobState", "launch", "resume"]

_HOMES = {
    "Generator": "answers.generation",
    "launch": "run.launcher",
    "resume": "run.launcher",
    "AdapterSettings": "job",
    "Hyper": "job",
    "LocalJob": "job",
    "RunDir": "run",
    "JobState": "run",
}


__getattr__ = late(__name__, _HOMES)
