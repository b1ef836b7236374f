"""Which tokens are trained, for each family of chat templates. The templates are short forms of the published
ones."""

from __future__ import annotations

from typing import Any

import pytest
from tests.paths import TINY

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    FunctionCall,
    PreferenceExample,
    TextExample,
    ToolCall,
)
from orchestrate.data.tokens.chat_templates import CHATML
from orchestrate.errors import DataError
from orchestrate.local.encoding import (
    SKIPS_THINKING,
    Encoded,
    Rules,
    Template,
    decode_row,
    encode,
    encode_pair,
)

UNMARKED_CHATML = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='', last=0) %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST]' + (ns.system if loop.index0 == ns.last else '') + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TEXT = "<bos>[INST]First?[/INST]One answer</s>[INST]Be kind.\n\nSecond?[/INST]Two answers</s>"
"""What mistral-common 1.13.1 makes of `TALK` (version 3 on Tekken, for tuning). The maker's encoder
has no Jinja text, and none of the installed packages has one."""
QWEN3 = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m['reasoning_content'] or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] }}{% for call in m['tool_calls'] or [] %}{{ '\n<tool_call>\n' }}"
    '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' }}{{ call.function.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m['content'] + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TALK = ChatExample(
    messages=[
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="user", content="First?"),
        ChatMessage(role="assistant", content="One answer"),
        ChatMessage(role="user", content="Second?"),
        ChatMessage(role="assistant", content="Two answers"),
    ]
)

FAMILIES = {
    "chatml": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "One answer<|im_end|>Two answers<|im_end|>",
    ),
    "chatml without marks": (
        UNMARKED_CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "One answer<|im_end|>Two answers<|im_end|>",
    ),
    "llama-3": (
        LLAMA3,
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "One answer<|eot_id|>Two answers<|eot_id|>",
    ),
    "gemma": (
        GEMMA,
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        "One answer<end_of_turn>Two answers<end_of_turn>",
    ),
    "mistral": (MISTRAL, ["[INST]", "[/INST]", "</s>"], "</s>", "One answer</s>Two answers</s>"),
    "qwen3": (
        QWEN3,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        # Only the last turn shows a thought, and the model must write the empty one itself.
        "One answer<|im_end|><think>\n\n</think>\n\nTwo answers<|im_end|>",
    ),
}


def template(source: str, special: list[str], eos: str | None = None) -> Template:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    tokenizer.add_tokens([*special, "<bos>"], special_tokens=True)
    tokenizer.bos_token = "<bos>"
    tokenizer.eos_token = eos or special[-1]
    tokenizer.chat_template = source
    return Template(tokenizer)


def test_the_short_form_of_mistral_says_what_the_makers_encoder_does() -> None:
    of = template(*FAMILIES["mistral"][:3])
    assert of.tokenizer.decode(encode(TALK, of).ids) == MISTRAL_TEXT


def trained(encoded: Encoded, of: Template) -> str:
    return of.tokenizer.decode([i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistants_words_and_the_end_of_its_turn_are_trained_and_nothing_else(family: str) -> None:
    source, special, eos, expected = FAMILIES[family]
    of = template(source, special, eos)
    encoded = encode(TALK, of)
    assert trained(encoded, of) == expected
    messages = [{"role": m.role, "content": m.text} for m in TALK.messages]
    rendered = of.tokenizer.apply_chat_template(messages, tokenize=False)
    assert encoded.ids == of.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert encoded.notes == (SKIPS_THINKING,) * ("<think>" in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_of_weight_zero_is_context_only(family: str) -> None:
    source, special, eos, _ = FAMILIES[family]
    of = template(source, special, eos)
    messages = list(TALK.messages)
    messages[2] = ChatMessage(role="assistant", content="One answer", weight=0.0)
    messages[4] = ChatMessage(role="assistant", content="Two answers", weight=0.5)
    encoded = encode(ChatExample(messages=messages), of)
    assert "One answer" not in trained(encoded, of)
    assert "Two answers" in trained(encoded, of)
    assert set(encoded.weights) == {0.0, 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_an_answer_only_the_marked_part_is_trained(family: str) -> None:
    """The end of the turn goes with the part that reaches it."""
    source, special, eos, _ = FAMILIES[family]
    of = template(source, special, eos)
    messages = list(TALK.messages)
    messages[2] = ChatMessage(role="assistant", content="One answer", loss_spans=[(0, 3)])
    messages[4] = ChatMessage(role="assistant", content="Two answers", loss_spans=[(4, 11)])
    words = trained(encode(ChatExample(messages=messages), of), of).replace(" ", "")
    assert words == f"Oneanswers{eos}"


def test_of_a_text_only_the_marked_parts_are_trained() -> None:
    of = template(*FAMILIES["chatml"][:3])
    encoded = encode(TextExample(text="One two three four", loss_spans=[(4, 7), (14, 18)]), of)
    assert trained(encoded, of).replace(" ", "") == "twofour<|im_end|>"
    encoded = encode(TextExample(text="One two three four", loss_spans=[(0, 3)]), of)
    assert trained(encoded, of).strip() == "One"


def test_reasoning_and_tool_calls_are_the_assistants_words() -> None:
    of = template(*FAMILIES["qwen3"][:3])
    row = ChatExample(
        messages=[
            ChatMessage(role="user", content="Weather?"),
            ChatMessage(
                role="assistant",
                content="",
                reasoning="I need the tool.",
                tool_calls=[
                    ToolCall(id="1", function=FunctionCall(name="weather", arguments='{"city": "Rome"}'))
                ],
            ),
            ChatMessage(role="tool", content="sunny", tool_call_id="1"),
            ChatMessage(role="assistant", content="Sunny.", reasoning="It says sunny."),
        ],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    )
    encoded = encode(row, of)
    text = trained(encoded, of)
    assert text == (
        "<think>\nI need the tool.\n</think>\n\n\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Rome"}}\n'
        "</tool_call><|im_end|><think>\nIt says sunny.\n</think>\n\nSunny.<|im_end|>"
    )
    assert encoded.notes == ()


def test_what_a_template_leaves_out_is_said() -> None:
    of = template(*FAMILIES["llama-3"][:3])
    row = ChatExample(
        messages=[
            ChatMessage(role="user", content="Weather?"),
            ChatMessage(role="assistant", content="Sunny.", reasoning="The season decides."),
        ],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    )
    notes = " ".join(encode(row, of).notes)
    assert "reasoning" in notes
    assert "tools" in notes


def test_a_template_without_an_end_of_turn_is_said() -> None:
    of = template("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}", ["<x>"])
    assert "learn to stop" in " ".join(encode(TALK, of).notes)


def test_a_tokenizer_without_a_template_gets_chatml() -> None:
    of = template(CHATML, FAMILIES["chatml"][1])
    of.tokenizer.chat_template = None
    stand_in = Template(of.tokenizer)
    assert not stand_in.chats.own
    assert trained(encode(TALK, stand_in), stand_in) == FAMILIES["chatml"][3]


def test_train_on_inputs_trains_every_token() -> None:
    of = template(*FAMILIES["chatml"][:3])
    encoded = encode(TALK, of, Rules(train_on_inputs=True))
    assert all(w == 1.0 for w in encoded.weights)


def test_a_long_row_is_cut_and_says_how_much() -> None:
    of = template(*FAMILIES["chatml"][:3])
    whole = encode(TALK, of)
    cut = encode(TALK, of, Rules(max_length=10))
    assert (len(cut.ids), len(cut.weights)) == (10, 10)
    assert cut.truncated == len(whole.ids) - 10
    assert cut.trained == 0


def test_completions_and_texts_end_with_the_end_token() -> None:
    of = template(*FAMILIES["chatml"][:3])
    completion = encode(CompletionExample(prompt="2 + 2 = ", completion="4"), of)
    assert trained(completion, of) == "4<|im_end|>"
    assert completion.ids[0] == of.tokenizer.bos_token_id
    text = encode(TextExample(text="To be"), of)
    assert of.tokenizer.decode(text.ids) == "<bos>To be<|im_end|>"
    assert text.trained == len(text.ids) - 1


def test_of_a_pair_only_the_answers_are_trained() -> None:
    of = template(*FAMILIES["llama-3"][:3])
    pair = encode_pair(
        PreferenceExample(
            prompt=list(TALK.messages[:4]),
            preferred=[ChatMessage(role="assistant", content="Good")],
            rejected=[ChatMessage(role="assistant", content="Bad")],
        ),
        of,
    )
    assert trained(pair.preferred, of) == "Good<|eot_id|>"
    assert trained(pair.rejected, of) == "Bad<|eot_id|>"


def test_a_conversation_that_the_template_refuses_is_an_error_of_the_data() -> None:
    of = template("{{ raise_exception('roles must alternate') if messages | length > 2 }}x", ["<x>"])
    with pytest.raises(DataError, match="roles must alternate"):
        encode(TALK, of)


def test_rows_of_every_kind_are_told_apart() -> None:
    assert isinstance(decode_row(b'{"messages": [{"role": "user", "content": "a"}]}'), ChatExample)
    assert isinstance(decode_row(b'{"prompt": "a", "completion": "b"}'), CompletionExample)
    assert isinstance(decode_row(b'{"prompt": [], "preferred": [], "rejected": []}'), PreferenceExample)
    assert isinstance(decode_row(b'{"text": "a"}'), TextExample)
    with pytest.raises(DataError):
        decode_row(b'{"messages": 3}')
