"""DSPy's provider for OpenAI, from its LM on. Arguments: the model and the data."""

import json
import sys
from pathlib import Path

import dspy
from dspy.clients.utils_finetune import TrainDataFormat

model, data = sys.argv[1:]
rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
job = dspy.LM(f"openai/{model}").finetune(rows, TrainDataFormat.CHAT, {"n_epochs": 2})
tuned = job.result()
refused = None
try:
    tuned("hi", cache=False)
except Exception as error:
    refused = str(error)
told = {"model": tuned.model, "status": str(job.status()), "refused": refused}
print(json.dumps(told))
