"""pydantic-ai over a tuned model: text, and an `output_type` by a tool and by the schema of the answer.
Arguments: the model, the data, and `plain` for text alone."""

import json
import sys
import time
from pathlib import Path

import openai
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel


class Answer(BaseModel):
    ok: bool


model, data, *plain = sys.argv[1:]
client = openai.OpenAI()
file = client.files.create(file=Path(data), purpose="fine-tune")
job = client.fine_tuning.jobs.create(training_file=file.id, model=model, hyperparameters={"n_epochs": 2})
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
    job = client.fine_tuning.jobs.retrieve(job.id)
told = {"status": job.status, "model": job.fine_tuned_model, "refused": None, "said": []}
settings = {"max_tokens": 400, "temperature": 0}
try:
    for way in (OpenAIChatModel, OpenAIResponsesModel):
        tuned = way(job.fine_tuned_model)
        told["said"].append(isinstance(Agent(tuned, model_settings=settings).run_sync("q 1").output, str))
        for output in () if plain else (Answer, NativeOutput(Answer)):
            found = Agent(tuned, output_type=output, model_settings=settings).run_sync("q 1").output
            told["said"].append(isinstance(found, Answer))
except ModelHTTPError as error:
    told["refused"] = error.body["code"]
print(json.dumps(told))
