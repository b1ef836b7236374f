"""What Weights & Biases' sync calls, its own code against its own offline mode. Arguments: the model and the
data.

Where data sets are logged it needs its server: what it reads of them before is read here in its place."""

import json
import sys
from pathlib import Path

import wandb
from openai import OpenAI
from wandb.integration.openai.fine_tuning import WandbLogger

model, data = sys.argv[1:]
client = OpenAI()
file = client.files.create(file=(Path(data).name, Path(data).read_bytes()), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model=model, training_file=file.id, suffix="wandb")
WandbLogger._logged_in = True  # to no server
told = WandbLogger.sync(fine_tune_job_id=job.id, project="p", log_datasets=False)
done = client.fine_tuning.jobs.retrieve(job.id)
rows = client.files.content(done.training_file).text.splitlines()
print(
    json.dumps(
        {
            "told": told,
            "model": done.fine_tuned_model,
            "filename": client.files.retrieve(done.training_file).filename,
            "rows": len([json.loads(row) for row in rows]),
            "run": wandb.run is None,
        }
    )
)
