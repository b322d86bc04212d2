"""LLaVA-1.5's vicuna_v1 prompt as a transformers chat template, for checkpoints that vig-ray writes.

It renders what `llava.render` renders, so that a checkpoint says the same in vLLM and in transformers as it was
trained on. The BOS token is left to the tokenizer.
"""

import re
from typing import Any

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

_IMAGES_FIRST = (
    "{%- set with_images = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is defined and message.content is not none and message.content is not string -%}"
    "{%- set turn = namespace(images='', text='') -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{%- set turn.images = turn.images + '<image>\n' -%}"
    "{%- elif part.type == 'text' -%}{%- set turn.text = turn.text + part.text -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if turn.images -%}{%- set turn.text = turn.images + (turn.text | trim) -%}{%- endif -%}"
    "{%- set with_images.messages = with_images.messages + [dict(message, content=turn.text)] -%}"
    "{%- else -%}{%- set with_images.messages = with_images.messages + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = with_images.messages %}"
)


def with_images(template: str) -> str:
    """A language model's chat template that takes images, too: they come first in their turn, each followed by a
    newline, as LLaVA's `preprocess_multimodal` puts them. What has no image is rendered as it was."""
    return _IMAGES_FIRST + template


def speaks_as_vicuna(tokenizer: Any, template: str | None) -> bool:
    """Whether a chat template has Vicuna's roles, or there is none, as in Vicuna's own checkpoint.

    The hub's LLaVA-1.5 has a template that leaves LLaVA's system prompt out, and is a LLaVA-1.5 none the less; one of
    other roles (TinyLlama's, a fine-tuned model's) is another model's, though its language model be a Llama, too.
    """
    if template is None:
        return True
    for made in (str, lambda text: [{"type": "text", "text": text}]):  # some take texts only, others parts only
        turns = [{"role": "user", "content": made("Red?")}, {"role": "assistant", "content": made("Yes.")}]
        try:
            text = str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
        except Exception:  # a template raises whatever its author wrote; what uses it says so
            continue
        if re.search(r"USER:\s*Red\?.*ASSISTANT:\s*Yes\.", text, re.DOTALL):
            return True
    return False
