"""Chat templates that behave as those of well-known models do, written for these tests."""

from __future__ import annotations

from typing import Any

from tests.base.make_models import CHATML, tiny_tokenizer

THINK = "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
# Qwen3: an empty thinking part ends the prompt; a finished answer gets one too; earlier answers lose theirs.
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.last %}"
    "{{ '<think>\n' + (parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '') + '\n</think>\n\n' }}"
    "{% endif %}{{ said + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + THINK + "{% endif %}"
)
# A reasoning model: the prompt opens the thinking part, finished answers lose theirs.
REASONING = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1].strip() + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Llama 3: beginning of sequence, today's date in a system header of its own, white space around messages removed.
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    '{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}'
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Gemma: no system message, the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Phi-3: what is no prompt ends with EOS.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# SmolLM2: a system message of its own where there is none.
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Mistral: question and answer between marks; a blank in front of the answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
# Zephyr: the prompt ends in a line end, with a SentencePiece vocabulary.
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# ChatML with tools, as Hermes' and Qwen's.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools:\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}"
    "{{ '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same for a model that thinks: the part stands in front of what it says, in all turns.
THINKING_TOOLS = TOOLS.replace(
    "+ m.content }}",
    "+ ('<think>\n' + m.reasoning_content + '\n</think>\n\n' if m.reasoning_content else '') + m.content }}",
)
# Mistral v3: the tools stand in front of the last question; ids of calls have nine letters and digits.
MISTRAL_TOOLS = (
    "{{ bos_token }}{% set last = (messages | map(attribute='role') | list | length) - 1 %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}"
    "{% endif %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}{% endfor %}"
    "{{ ']' + eos_token }}"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
    "{{ '[TOOL_RESULTS]' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# Faulty ones, as people have them.
NO_HEADER = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_ONLY = (
    "{% set asked = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{ '<|im_start|>user\n' + asked.content + '<|im_end|>\n' }}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if not add_generation_prompt %}{{ messages[-1].content + '<|im_end|>\n' }}{% endif %}"
)
UPPER = CHATML.replace("message['content']", "message['content'] | upper")
UNCLOSED = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)

MARKS = {
    "<|start_header_id|>": LLAMA3,
    "<|end_header_id|>": LLAMA3,
    "<|eot_id|>": LLAMA3,
    "<start_of_turn>": GEMMA,
    "<end_of_turn>": GEMMA,
    "<|end|>": PHI3,
    "<|user|>": PHI3,
    "<|assistant|>": PHI3,
    "<|system|>": PHI3,
}


def with_template(template: str, **tokens: str) -> Any:
    """The tiny tokenizer with a template, its marks as special tokens, and other named tokens (eos_token=…)."""
    made = tiny_tokenizer()
    made.chat_template = template
    if marks := [mark for mark, where in MARKS.items() if where == template]:
        made.add_special_tokens({"additional_special_tokens": [*made.all_special_tokens, *marks]})
    for name, token in tokens.items():
        setattr(made, name, token)
    return made
