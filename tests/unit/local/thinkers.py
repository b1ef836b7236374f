"""Models of families that think before they answer, made of the tiny one: its weights, a row for each of the
family's marks, and a chat template that has the family's constructs in words of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.paths import TINY

THINKS = """
{%- set last = namespace(user=0) -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{ '<|im_start|>system\n' }}{% for t in tools %}{{ (t | tojson) + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- endif -%}
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + '\n' -}}
  {%- if m.role == 'assistant' -%}
    {%- set thought = m.reasoning_content or '' -%}
    {%- if loop.index0 > last.user and (loop.last or thought) -%}
      {{- '<think>\n' + thought + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- m.content or '' -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
    {%- endfor -%}
  {%- else -%}
    {{- m.content -}}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}
{%- endif -%}
"""
"""As Qwen3's: thinking between tags, of the last answer alone and empty where there is none; a setting that
closes it beforehand; calls as JSON between tags."""

CHANNELS = """
{%- macro part(header, text, end) -%}{{ '<|start|>' + header + '<|message|>' + text + end }}{%- endmacro -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- if m.reasoning_content and loop.last -%}
      {{- part('assistant<|channel|>analysis', m.reasoning_content, '<|end|>') -}}
    {%- endif -%}
    {%- if m.tool_calls -%}
      {%- set f = m.tool_calls[0].function -%}
      {{- part('assistant<|channel|>commentary to=functions.' + f.name, f.arguments | tojson, '<|call|>') -}}
    {%- else -%}
      {{- part('assistant<|channel|>final', m.content, '<|return|>' if loop.last else '<|end|>') -}}
    {%- endif -%}
  {%- elif m.role == 'tool' -%}
    {{- part('functions to=assistant<|channel|>commentary', m.content, '<|end|>') -}}
  {%- else -%}
    {{- part(m.role, m.content, '<|end|>') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}
"""
"""As gpt-oss's: an answer is a message for each channel, and what ends one of them ends the answer only where
it is the last."""

FAMILIES: dict[str, tuple[str, list[str], list[str], str]] = {
    "thinks": (THINKS, [], ["<think>", "</think>", "<tool_call>", "</tool_call>"], "<|im_end|>"),
    "channels": (
        CHANNELS,
        ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"],
        [],
        "<|return|>",
    ),
}
"""Template, special tokens, further tokens, and the one that ends a text."""


def make_family(name: str, folder: Path, **generation: Any) -> Path:
    """`generation`: fields of its `generation_config`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    template, special, plain, end = FAMILIES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens(plain)
    tokenizer.eos_token, tokenizer.chat_template = end, template
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True)
    rows = model.resize_token_embeddings(len(tokenizer), mean_resizing=False).weight.data
    new = len(special) + len(plain)
    torch.manual_seed(0)
    rows[-new:] = torch.randn_like(rows[-new:]) * rows[:-new].std()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **generation
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[tuple[str, dict[str, Any]]]) -> Path:
    """Questions with their answers, canonical."""
    with path.open("w", encoding="utf-8") as out:
        for question, answer in rows:
            messages = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path
