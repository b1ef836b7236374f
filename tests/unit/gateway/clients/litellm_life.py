"""LiteLLM's calls for files and fine-tuning jobs. Arguments: the model and the data."""

import json
import os
import sys
import time
from pathlib import Path

import litellm

model, data = sys.argv[1:]
to = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}
file = litellm.create_file(file=(Path(data).name, Path(data).read_bytes()), purpose="fine-tune", **to)
hyper = {"n_epochs": "2", "learning_rate_multiplier": "2.0"}
job = litellm.create_fine_tuning_job(
    model=model, training_file=file.id, hyperparameters=hyper, suffix="lite", **to
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
    job = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **to)
listed = litellm.list_fine_tuning_jobs(limit=1, **to)
other = litellm.create_fine_tuning_job(model=model, training_file=file.id, **to)
cancelled = litellm.cancel_fine_tuning_job(fine_tuning_job_id=other.id, **to)
content = litellm.file_content(file_id=file.id, **to).content
told = {
    "status": job.status,
    "model": job.fine_tuned_model,
    "listed": [one.id for one in listed.data] == [job.id],
    "cancelled": cancelled.status,
    "content": content == Path(data).read_bytes(),
    "deleted": litellm.file_delete(file_id=file.id, **to).deleted,
    "provider": litellm.get_llm_provider(job.fine_tuned_model)[1],
}
print(json.dumps(told))
