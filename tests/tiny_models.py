"""Small checkpoints with random weights, in the layout of real ones, made on the spot."""

from __future__ import annotations

import json
import os

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

QWEN_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The circle is red. A blue square stands on the left, a green cross on the right.",
    "Où est le café? Il est à gauche, près de l'église. 红色的圆 😀",
    "system user assistant You are a helpful assistant.",
]


def byte_level_tokenizer(specials: list[str], vocab_size: int = 420) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return tokenizer


def write_qwen(folder: str, seed: int = 0, heads: int = 4) -> None:
    """A Qwen2.5-VL with 2 + 2 layers, byte-level BPE, ChatML template.

    `heads`: of a width of 64. vLLM's attention on a CPU takes none narrower than 32.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(QWEN_SPECIALS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        model_max_length=4096,
    )
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8 // heads, 12 // heads, 12 // heads],
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # random weights as they come say next to nothing; make the image matter
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.generation_config.eos_token_id = token(["<|im_end|>", "<|endoftext|>"])  # as the real one's
    model.save_pretrained(folder)
    # Written part by part, as the hub's checkpoints are: the whole processor needs torchvision for its video half.
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 24).to_dict()
    images |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
        json.dump(images, file)


def sentencepiece_like(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with LLaVA's special tokens over `CORPUS`.

    `first`, `always`: Metaspace, its two ways to prefix a space; `legacy`: Llama's normalizer (Prepend, Replace),
    as Vicuna's converted tokenizers have; `bytes`: byte-level BPE.
    """
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    if kind == "bytes":
        tokenizer = byte_level_tokenizer(specials)
    else:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
        learned = json.loads(learner.to_str())["model"]
        pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)]
        pieces += [piece for piece in learned["vocab"] if piece not in pieces]
        model = models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
        tokenizer = Tokenizer(model)
        if kind == "legacy":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
GEMMA_SPECIALS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
GEMMA_SPECIALS += ["\n", "\n\n", "\n\n\n", "\n\n\n\n"]  # tokens of its own, as in the real vocabulary
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for p in m.content %}{% if p.type == 'image' %}<start_of_image>{% else %}"
    "{{ p.text | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def write_gemma(folder: str, softcap: float | None = 5.0, heads: int = 4) -> None:
    """A Gemma 3 with sliding-window layers, images that see both ways, and features that come as one tensor.

    `softcap`: of the logits. transformers names it and doesn't apply it in models with images, vLLM applies it.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(GEMMA_SPECIALS),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
        model_max_length=4096,
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 12,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": 64 // heads,
            "query_pre_attn_scalar": 64 // heads,
            "final_logit_softcapping": softcap,
            "max_position_embeddings": 4096,
            "bos_token_id": token("<bos>"),
            "eos_token_id": token("<eos>"),
            "pad_token_id": token("<pad>"),
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 7, "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        image_token_index=token("<image_soft_token>"),
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.2)
    model.generation_config.eos_token_id = token(["<eos>", "<end_of_turn>"])  # as the real one's
    model.save_pretrained(folder)
    Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=4,
    ).save_pretrained(folder)


def byte_level(specials: list[str], *, eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `CORPUS`."""
    tokenizer = byte_level_tokenizer(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos)


def write_language_model(folder: str, tokenizer: PreTrainedTokenizerFast, kind: str = "llama", seed: int = 0) -> str:
    """A language model of two layers with random weights, an AutoModelForCausalLM; returns `folder`.

    `kind`: of any family whose config has the names of Llama's.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # random weights as they come say next to nothing
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
