"""LlamaIndex's engine for OpenAI. Arguments: the model and the data.

Its own check of the data is left out: it fetches the vocabulary of a tokenizer from the network."""

import json
import os
import sys
import time

import openai
from llama_index.finetuning import OpenAIFinetuneEngine

model, data = sys.argv[1:]
engine = OpenAIFinetuneEngine(model, data, validate_json=False)
engine.finetune()
while (job := engine.get_current_job()).status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
llm = engine.get_finetuned_model(temperature=0.0, api_base=os.environ["OPENAI_BASE_URL"], max_retries=20)
refused = None
try:
    llm.complete("hi")
except openai.APIStatusError as error:
    refused = error.code
unknown = OpenAIFinetuneEngine("gpt-none", data, validate_json=False)
gave_up = False
try:
    unknown.finetune()  # after a 400 it would go on for ever
except openai.NotFoundError:
    gave_up = True
told = {
    "status": job.status,
    "model": llm.model,
    "window": llm.metadata.context_window,
    "refused": refused,
    "gave_up": gave_up,
}
print(json.dumps(told))
