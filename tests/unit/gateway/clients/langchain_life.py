"""LangChain's published guide to fine-tuning on chats: rows in a nameless buffer, then ChatOpenAI over the
tuned model, in plain text and as a structured answer by each of its methods. Arguments: the model, the data,
and `plain` for text alone."""

import io
import json
import sys
import time
from pathlib import Path

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """What is said."""

    ok: bool


model, data, *plain = sys.argv[1:]
client = openai.OpenAI()
buffer = io.BytesIO(Path(data).read_bytes())
file = client.files.create(file=buffer, purpose="fine-tune")
while client.files.retrieve(file.id).status not in ("processed", "error"):
    time.sleep(0.1)
job = client.fine_tuning.jobs.create(training_file=file.id, model=model, hyperparameters={"n_epochs": 2})
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.2)
    job = client.fine_tuning.jobs.retrieve(job.id)
told = {"status": job.status, "model": job.fine_tuned_model, "refused": None, "said": []}
chat = ChatOpenAI(model=job.fine_tuned_model, temperature=0, max_tokens=24, timeout=240)
try:
    told["text"] = isinstance(chat.invoke([HumanMessage("q 1")]).content, str)
    told["streamed"] = any(chunk.response_metadata for chunk in chat.stream("q 1"))
    roomy = ChatOpenAI(model=job.fine_tuned_model, temperature=0, max_tokens=400, timeout=240)
    for method in () if plain else ("json_schema", "function_calling"):
        held = roomy.with_structured_output(Answer, method=method)
        told["said"].append(isinstance(held.invoke("q 1"), Answer))
    if not plain:
        try:
            held = chat.with_structured_output(Answer, method="json_mode", include_raw=True)
            said = held.invoke("Answer in JSON with a boolean called ok.")["raw"].content
        except openai.LengthFinishReasonError as cut:  # an object of a tiny model need not come to its end
            said = cut.completion.choices[0].message.content
        told["said"].append(said.lstrip().startswith("{"))
except openai.APIStatusError as error:
    told["refused"] = error.code
print(json.dumps(told))
