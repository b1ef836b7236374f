"""The chat template that a spec asks for, and what holds in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrate.data.tokens import counting, tokenizer_files
from orchestrate.data.tokens.chat_templates import reads, require_template
from orchestrate.errors import DataError, SpecError
from orchestrate.providers.settings import Rows
from orchestrate.spec import JobSpec
from orchestrate.spec.specfile import template_text

GOES_ALONG = "goes with the result, for chat, evaluation and export"


def chat_template(rows: Rows, spec: JobSpec, model: str) -> None:
    templates = _of(model)
    if spec.chat_template is not None:
        try:
            text = template_text(spec.chat_template)
            require_template(text)
        except (SpecError, DataError) as error:
            rows.refuse("chat_template", error.message)
            return
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        rows.keep("chat_template", "chat_template", text, rule=f"sha256 {digest}; {GOES_ALONG}")
        templates = text
    if settings := spec.chat_template_kwargs:
        if templates and (unread := [name for name in settings if not reads(templates, name)]):
            rows.refuse("chat_template_kwargs", f"the chat template reads no {unread[0]}")
        else:
            rule = f"holds where nobody says otherwise; {GOES_ALONG}"
            rows.keep("chat_template_kwargs", "chat_template_kwargs", dict(settings), rule=rule)


def _of(model: str) -> object:
    """The model's own templates, where they are on this machine."""
    folder = model if Path(model).is_dir() else None
    name = counting.for_model(hub=None if folder else model, folder=folder)
    return tokenizer_files.chat_templates(counting.folder_of(name)) if name.startswith("hf:") else None
