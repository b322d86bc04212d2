"""LLaVA-1.5's vicuna_v1 prompt as a transformers chat template, for checkpoints that vig-ray writes.

It renders what `llava.render` renders, so that a checkpoint says the same in vLLM and in transformers as it was
trained on. The BOS token is left to the tokenizer.
"""

from vig_ray.model.llava import SYSTEM

LLAVA_V1 = (
    "{%- set system = '" + SYSTEM.replace("'", "\\'") + "' -%}"
    "{%- set turns = messages -%}"
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages and messages[0].role == 'system' -%}"
    "{%- set system = words(messages[0].content) -%}{%- set turns = messages[1:] -%}"
    "{%- endif -%}"
    "{{- system + ' ' -}}"
    "{%- for message in turns -%}"
    "{%- if message.role == 'user' -%}"
    "{{- 'USER: ' -}}"
    "{%- set images = [] if message.content is string"
    " else message.content | selectattr('type', 'equalto', 'image') | list -%}"
    "{{- '<image>\n' * images | length -}}"
    "{%- if images -%}{{- words(message.content) | trim -}}{%- else -%}{{- words(message.content) -}}{%- endif -%}"
    "{{- ' ' -}}"
    "{%- else -%}"
    "{{- 'ASSISTANT: ' + words(message.content) + '</s>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
