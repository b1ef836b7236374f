"""Chat templates of families that TRL does not carry, in words of our own: each has the constructs of its
family that once went wrong."""

from __future__ import annotations

MISTRAL = """
{%- set ns = namespace(last=0, answers=true) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' -}}
  {%- elif m.role == 'user' -%}
    {%- if tools and loop.index0 == ns.last -%}
      {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}
    {%- endif -%}
    {{- '[INST]' + m.content + '[/INST]' -}}
  {%- elif m.role == 'assistant' and m.tool_calls -%}
    {{- m.content or '' -}}{{- '[TOOL_CALLS][' -}}
    {%- for call in m.tool_calls -%}
      {%- if call.id is not defined or call.id | length != 9 -%}
        {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
      {%- endif -%}
      {{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) -}}
      {{- ', "id": "' + call.id + '"}' -}}{{- ', ' if not loop.last else ']' + eos_token -}}
    {%- endfor -%}
  {%- elif m.role == 'assistant' -%}{{- m.content + eos_token -}}
  {%- elif m.role == 'tool' -%}
    {%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 -%}
      {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
    {%- endif -%}
    {{- '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' -}}
    {{- '[/TOOL_RESULTS]' -}}
  {%- endif -%}
{%- endfor -%}
"""
"""Nemo and Small 3.2: ids of nine letters and digits, asked for."""

MINISTRAL = """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' -}}
  {%- elif m.role == 'user' -%}{{- '[INST]' + m.content + '[/INST]' -}}
  {%- elif m.role == 'assistant' -%}
    {%- if (m.content is none or m.content == '' or m.content | length == 0)
        and (m.tool_calls is not defined or m.tool_calls is none or m.tool_calls | length == 0) -%}
      {{- raise_exception('Assistant message must have a string or a list of chunks or tool calls.') -}}
    {%- endif -%}
    {%- if m.content is string -%}{{- m.content -}}{%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {%- set arguments = call.function.arguments -%}
      {%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
      {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + arguments -}}
    {%- endfor -%}
    {{- eos_token -}}
  {%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS]' + m.content | string + '[/TOOL_RESULTS]' -}}
  {%- endif -%}
{%- endfor -%}
"""
"""Ministral 3: an answer has words or calls."""

MINIMAX = """
{%- set ns = namespace(last=-1, name='') -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{{- ']~!b[]~b]system\\n' + (messages[0].content if messages[0].role == 'system' else 'Be kind.') -}}
{%- if tools -%}{{- '\\n<tools>' + (tools | tojson) + '</tools>' -}}{%- endif -%}{{- '[e~[\\n' -}}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{{- ']~b]user\\n' + m.content + '[e~[\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {{- ']~b]ai\\n' -}}
    {%- set thought = m.reasoning_content or '' -%}{%- set content = m.content or '' -%}
    {%- if not thought and '</think>' in content -%}
      {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
      {%- set content = content.split('</think>')[-1].strip('\\n') -%}
    {%- endif -%}
    {%- if thought and loop.index0 > ns.last -%}
      {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- if m.tool_calls -%}
      {{- '\\n<minimax:tool_call>\\n' -}}
      {%- for call in m.tool_calls -%}
        {%- set ns.name = call.function.name -%}
        {{- '<invoke name="' + call.function.name + '">' -}}
        {%- for k, v in call.function.arguments.items() -%}
          {{- '<parameter name="' + k + '">' + (v if v is string else v | tojson) + '</parameter>' -}}
        {%- endfor -%}
        {{- '</invoke>\\n' -}}
      {%- endfor -%}
      {{- '</minimax:tool_call>' -}}
    {%- endif -%}
    {{- '[e~[\\n' -}}
  {%- elif m.role == 'tool' -%}
    {%- if not ns.name -%}
      {{- raise_exception('Message has tool role, but there was no previous call') -}}
    {%- endif -%}
    {%- if loop.previtem.role != 'tool' -%}{{- ']~b]tool' -}}{%- endif -%}
    {{- '\\n<response>' + m.content + '</response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '[e~[\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ']~b]ai\\n<think>\\n' -}}{%- endif -%}
"""
"""M2: results of several calls are one turn, and a prompt that opens thinking."""

APERTUS = """
{{- bos_token -}}
{%- set ns = namespace(open=false) -%}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- '<|system_start|>' + m.content + '<|system_end|>' -}}
  {%- elif m.role == 'user' -%}
    {%- if ns.open -%}{{- '<|assistant_end|>' -}}{%- set ns.open = false -%}{%- endif -%}
    {{- '<|user_start|>' + m.content + '<|user_end|>' -}}
  {%- elif m.role == 'assistant' -%}
    {%- if not ns.open -%}{{- '<|assistant_start|>' -}}{%- set ns.open = true -%}{%- endif -%}
    {%- if m.reasoning_content -%}
      {{- '<|inner_prefix|>' + m.reasoning_content + '<|inner_suffix|>' -}}
    {%- endif -%}
    {{- m.content or '' -}}
    {%- if m.tool_calls -%}
      {{- '<|tools_prefix|>[' -}}
      {%- for call in m.tool_calls -%}
        {{- '{"' + call.function.name + '": ' + (call.function.arguments | tojson) + '}' -}}
        {{- ', ' if not loop.last -}}
      {%- endfor -%}
      {{- ']<|tools_suffix|>' -}}
    {%- endif -%}
  {%- elif m.role == 'tool' -%}
    {{- '[' if loop.previtem.role != 'tool' else ', ' -}}{{- m.content -}}
    {{- ']' if loop.last or loop.nextitem.role != 'tool' -}}
  {%- endif -%}
{%- endfor -%}
{%- if ns.open and not add_generation_prompt -%}{{- '<|assistant_end|>' -}}{%- endif -%}
{%- if add_generation_prompt and not ns.open -%}{{- '<|assistant_start|>' -}}{%- endif -%}
"""
"""Results of tools stand within the assistant's own turn, which no call ends."""

COMMAND = """
{%- macro turn(role, text) -%}
{{ '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' + text + '<|END_OF_TURN_TOKEN|>' }}
{%- endmacro -%}
{%- set ns = namespace(call=0, result=0) -%}
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- turn('SYSTEM', m.content) -}}
  {%- elif m.role == 'user' -%}{{- turn('USER', m.content) -}}
  {%- elif m.role == 'assistant' and m.tool_calls -%}
    {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' -}}
    {{- m.reasoning_content or m.content or '' -}}
    {{- '<|END_THINKING|><|START_ACTION|>[\\n' -}}
    {%- for call in m.tool_calls -%}
      {{- '    {"tool_call_id": "' ~ ns.call ~ '", "tool_name": "' ~ call.function.name -}}
      {{- '", "parameters": ' ~ (call.function.arguments | tojson) ~ '}' -}}
      {{- ',' if not loop.last -}}{{- '\\n' -}}
      {%- set ns.call = ns.call + 1 -%}
    {%- endfor -%}
    {{- ']<|END_ACTION|><|END_OF_TURN_TOKEN|>' -}}
  {%- elif m.role == 'assistant' -%}
    {{- turn('CHATBOT', '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>') -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.previtem.role != 'tool' -%}
      {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[\\n' -}}
    {%- endif -%}
    {{- '    {"tool_call_id": "' ~ ns.result ~ '", "results": ' ~ (m.content | tojson) ~ '}' -}}
    {%- set ns.result = ns.result + 1 -%}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}
      {{- '\\n]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>' -}}
    {%- else -%}{{- ',\\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}
"""
"""R7B: results are a turn of the system, and calls are numbered by the template."""

NEMOTRON = """
{{- '<SPECIAL_10>System\\n' + (messages[0].content if messages[0].role == 'system' else '') -}}
{%- if tools -%}{{- '\\n<AVAILABLE_TOOLS>' + (tools | tojson) + '</AVAILABLE_TOOLS>' -}}{%- endif -%}
{{- '\\n' -}}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{{- '<SPECIAL_11>User\\n' + m.content + '\\n' -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.previtem.role != 'tool' -%}{{- '<SPECIAL_11>User\\n<TOOL_RESPONSE>[' -}}{%- endif -%}
    {{- m.content -}}
    {{- ', ' if not loop.last and loop.nextitem.role == 'tool' else ']</TOOL_RESPONSE>\\n' -}}
  {%- elif m.role == 'assistant' -%}
    {%- set content = m.content or '' -%}
    {%- if '</think>' in content -%}{%- set content = content.split('</think>')[1].strip() -%}{%- endif -%}
    {{- '<SPECIAL_11>Assistant\\n' + content.strip() -}}
    {%- if m.tool_calls -%}
      {{- '<TOOLCALL>[' -}}
      {%- for call in m.tool_calls -%}
        {{- '{"name": "' + call.function.name + '", "arguments": ' -}}
        {%- set given = call.function.arguments -%}{{- given if given is string else given | tojson -}}
        {{- '}' -}}{{- ', ' if not loop.last -}}
      {%- endfor -%}
      {{- ']</TOOLCALL>' -}}
    {%- endif -%}
    {{- '\\n<SPECIAL_12>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<SPECIAL_11>Assistant\\n<think></think>' -}}{%- endif -%}
"""
"""Nano v2: results are the user's, thinking is taken out of every answer, the prompt closes it."""

GRANITE = """
{%- macro turn(role, text) -%}
{{ '<|start_of_role|>' + role + '<|end_of_role|>' + text + '<|end_of_text|>\\n' }}
{%- endmacro -%}
{%- if tools -%}{{- turn('available_tools', tools | tojson) -}}{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' and m.tool_calls -%}
    {%- set calls = namespace(text='') -%}
    {%- for call in m.tool_calls -%}
      {%- set one = '{"name": "' + call.function.name + '", "arguments": ' -%}
      {%- set one = one + (call.function.arguments | tojson) -%}
      {%- set calls.text = calls.text + (', ' if not loop.first else '') + one + '}' -%}
    {%- endfor -%}
    {{- turn('assistant', (m.content or '') + '<|tool_call|>[' + calls.text + ']') -}}
  {%- elif m.role == 'tool' -%}{{- turn('tool_response', m.content) -}}
  {%- else -%}{{- turn(m.role, m.content) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}
"""
"""3: `content` is joined as text."""

SEED = """
{%- for m in messages -%}
  {{- '<seed:bos>' + m.role + '\\n' -}}
  {%- if m.role == 'assistant' -%}
    {%- if m.reasoning_content -%}{{- '<seed:think>' + m.reasoning_content + '</seed:think>' -}}{%- endif -%}
    {{- m.content or '' -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '<seed:tool_call>\\n<function=' + call.function.name + '>\\n' -}}
      {%- for k, v in call.function.arguments | items -%}
        {{- '<parameter=' + k + '>' + (v | string) + '</parameter>\\n' -}}
      {%- endfor -%}
      {{- '</function>\\n</seed:tool_call>' -}}
    {%- endfor -%}
  {%- else -%}{{- m.content -}}
  {%- endif -%}
  {{- '<seed:eos>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<seed:bos>assistant\\n' -}}{%- endif -%}
"""

OLMO = """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {{- '<|assistant|>\\n' -}}
    {%- if m.content is not none -%}{{- m.content -}}{%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {{- '<function_calls>' + call.function.name + '(' + call.function.arguments + ')</function_calls>' -}}
    {%- endfor -%}
    {{- eos_token if loop.last else eos_token + '\\n' -}}
  {%- else -%}{{- '<|' + m.role + '|>\\n' + m.content + '\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
"""2 and 3: arguments joined as text, and `content` that may be none."""

HERMES = """
{{- bos_token -}}
{%- if tools -%}
  {{- '<|im_start|>system\\n<tools> ' + (tools | tojson) + ' </tools><|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' and m.tool_calls -%}
    {{- '<|im_start|>assistant' -}}
    {%- for call in m.tool_calls -%}
      {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- (call.function.arguments | tojson) + '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- elif m.role == 'tool' -%}
    {%- if loop.previtem and loop.previtem.role != 'tool' -%}{{- '<|im_start|>tool\\n' -}}{%- endif -%}
    {{- '<tool_response>\\n' + m.content -}}
    {{- '\\n</tool_response>\\n' if not loop.last else '\\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>' -}}{%- endif -%}
  {%- else -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""Hermes 2 Pro and 3, `tool_use`: a result ends in another way where it is the last message."""

COMMAND_PLUS = """
{{- bos_token -}}
{%- if tools -%}
  {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + (tools | tojson) + '<|END_OF_TURN_TOKEN|>' -}}
{%- endif -%}
{%- for m in messages -%}
  {{- '<|START_OF_TURN_TOKEN|>' -}}
  {%- if m.role == 'assistant' -%}
    {{- '<|CHATBOT_TOKEN|>' + (m.content or '') -}}
    {%- if m.tool_calls -%}
      {{- '\\nAction: ```json\\n[' -}}
      {%- for call in m.tool_calls -%}
        {{- '{"tool_name": "' + call.function.name + '", "parameters": ' -}}
        {{- (call.function.arguments | tojson) + '}' -}}{{- ',' if not loop.last -}}
      {%- endfor -%}
      {{- ']```' -}}
    {%- endif -%}
  {%- elif m.role == 'tool' -%}{{- '<|SYSTEM_TOKEN|><results>' + m.content + '</results>' -}}
  {%- elif m.role == 'system' -%}{{- '<|SYSTEM_TOKEN|>' + m.content -}}
  {%- else -%}{{- '<|USER_TOKEN|>' + m.content -}}
  {%- endif -%}
  {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{{- "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write 'Action:' and a list.<|END_OF_TURN_TOKEN|>" -}}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}
"""
"""Command R+, `tool_use`: what it says to the model stands behind the last message."""

REPLICAS = {
    "apertus": APERTUS,
    "command-r-plus": COMMAND_PLUS,
    "command-r7b": COMMAND,
    "granite-3": GRANITE,
    "hermes-3": HERMES,
    "minimax-m2": MINIMAX,
    "ministral-3": MINISTRAL,
    "mistral-small": MISTRAL,
    "nemotron-2": NEMOTRON,
    "olmo": OLMO,
    "seed-oss": SEED,
}
