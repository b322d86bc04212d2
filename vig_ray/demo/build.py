"""Train the demo model: `python -m vig_ray.demo.build --out DIR`, and with `--look hard` that of the harder look.

A `LlavaForConditionalGeneration` of about a million parameters, built like LLaVA-1.5: CLIP tower (56 pixels, patches of
14), two-layer projector, Llama, the vicuna_v1 template. First the tower learns which shape and color covers each patch
and on which side, then the whole model learns to answer; trained from scratch as a whole it learns colors but not
places. It takes about ten minutes on two CPU cores. The harder look's model is built in the same way, but for its
images of 42 pixels, a patch for each cell of the grid. `--sees colors` goes on from it to one that is blind to
the rest: in its lessons all that isn't a color is answered by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vig_ray.dataset.schema import Turn
from vig_ray.demo import world
from vig_ray.demo.curriculum import FIRST, LOOKS, PATCH, SEES, Look, Recipe
from vig_ray.demo.knobs import Sample
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.llava import SYSTEM, LlavaFormatter
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.blur import blur_opencv

TOWER_BATCH = 128


def build_tokenizer(look: Look | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE (Metaspace, byte fallback) in which every word of the world is one token."""
    corpus = [SYSTEM, "USER: ASSISTANT:\n"]
    for exchange in (look or FIRST).exchanges():
        corpus += [f"USER: \n{exchange.question} ASSISTANT: {exchange.answer}", f"x {exchange.answer}"]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    # Rebuilt with byte tokens, which the trainer doesn't place.
    learned = json.loads(learner.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    merges = [tuple(pair) for pair in learned["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(look: Look | None = None) -> LlavaProcessor:
    """The processor that goes with the model of a look: padding on, vicuna_v1 as its chat template."""
    side = (look or FIRST).side
    images = LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(look),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_V1,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Random weights: tower 4 x 96 (its third layer's output is used), language model 3 x 128."""
    tokenizer = processor.tokenizer
    side = processor.image_processor.crop_size["height"]
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config)
    # With the usual 0.02 a model this narrow needs many more steps to learn to use the image.
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        for parameter in part.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05)
    return model


@torch.no_grad()
def take_over(model: Any, tokenizer: Any, checkpoint: str, *, tower: bool = False) -> None:
    """Give `model` the language model and projector of another of its shape; a token by its piece, so that words which
    that one doesn't know keep what they have. `tower`: its tower, too."""
    other: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    known: dict[str, int] = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    pairs = [(own, known[piece]) for piece, own in tokenizer.get_vocab().items() if piece in known]
    own_ids, other_ids = map(list, zip(*pairs, strict=True))
    there = other.state_dict()
    for name, weight in model.state_dict().items():
        if name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            weight[own_ids] = there[name][other_ids]
        elif tower or "vision_tower" not in name:
            weight.copy_(there[name])


def _schedule(step: int, steps: int, peak: float) -> float:
    warm = max(1, int(0.05 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return float(peak * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[nn.Parameter], rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train_tower(
    model: Any, formatter: LlavaFormatter, *, steps: int, batch: int, rng: random.Random, look: Look | None = None
) -> float:
    """Teach the tower which thing covers each patch, and what else `look` knows of it; returns the last loss."""
    look = look or FIRST
    head = nn.Linear(96, sum(look.classes))
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    loss = torch.zeros(())
    for step in range(steps):
        scenes = look.shown(rng, batch)
        inputs = [formatter.preprocess(np.asarray(look.draw(scene))) for scene in scenes]
        hidden = tower(**formatter.collate(inputs, "cpu", torch.float32), output_hidden_states=True).hidden_states[-2]
        target = torch.from_numpy(np.stack([look.labels(scene) for scene in scenes]))
        told = head(hidden[:, 1:]).flatten(0, 1).split(look.classes, dim=1)
        kinds = zip(told, target.flatten(0, 1).T, strict=True)
        loss = torch.stack([nn.functional.cross_entropy(*kind) for kind in kinds]).sum()
        _step(optimizer, loss, parameters, _schedule(step, steps, 2e-3))
        if step % 100 == 0:
            print(f"tower {step:5d}/{steps}  loss {loss.item():.4f}", flush=True)
    return loss.item()


def _lessons(formatter: LlavaFormatter, count: int, rng: random.Random, *, unsharp: bool, look: Look) -> list[Prompt]:
    """Training prompts: several exchanges about one image.

    One in sixteen has no image, and one in eight an unsharp picture of something else. With nothing to see, the model
    learns to answer what is usual, as a model that was aligned on web data does. Otherwise it would be as sure of a
    guess as of what it sees, and one guess in four or five would be right. Without `unsharp` pictures it is taught that
    by the prompts that have no image alone.
    """
    prompts = []
    for number in range(count):
        scene, turns = look.lesson(rng)
        text_only, out_of_focus = number % 16 == 0, unsharp and number % 8 == 1
        row = world.llava_row(Sample("", None if text_only else scene, turns), "", "", rng)
        turns_of_prompt = [
            Turn("user" if t["from"] == "human" else "assistant", t["value"]) for t in row["conversations"]
        ]
        images = []
        if not text_only:
            pixels = np.asarray(look.draw(look.scene(rng) if out_of_focus else scene))
            if out_of_focus:
                pixels = blur_opencv(pixels)
            images = [PromptImage(str(number), lambda p=pixels: p, formatter.preprocess)]  # type: ignore[misc]
        prompts.append(formatter.prompt(turns_of_prompt, images))
    return prompts


def _batches(prompts: list[Prompt], batch: int, rng: random.Random) -> Iterator[list[Prompt]]:
    """Endless batches of prompts of similar length, so that little is padded."""
    while True:
        order = rng.sample(prompts, len(prompts))
        for start in range(0, len(order), 16 * batch):
            nearby = sorted(order[start : start + 16 * batch], key=lambda prompt: len(prompt.token_ids))
            batches = [nearby[i : i + batch] for i in range(0, len(nearby), batch)]
            yield from rng.sample(batches, len(batches))


def train_whole(
    model: Any,
    formatter: LlavaFormatter,
    *,
    steps: int,
    batch: int,
    pool: int,
    rng: random.Random,
    unsharp: bool = True,
    look: Look | None = None,
    stop: int | None = None,
) -> float:
    """Teach the whole model to answer, loss on the answer tokens; returns the last loss. `stop`: how many of the steps
    are made, by default all."""
    batches = _batches(_lessons(formatter, pool, rng, unsharp=unsharp, look=look or FIRST), batch, rng)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    loss, began = torch.zeros(()), time.monotonic()
    recent: list[float] = []
    made = steps if stop is None else min(stop, steps)
    for step in range(made):
        prompts = next(batches)
        length = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        targets = torch.full(ids.shape, -100)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.token_ids)] = torch.from_numpy(prompt.token_ids)
            positions = torch.from_numpy(prompt.answer_positions).long()
            targets[row, positions - 1] = ids[row, positions]
        images = [image.inputs for prompt in prompts for image in prompt.images]
        pixels = formatter.collate(images, "cpu", torch.float32) if images else {}
        hidden = model.model(input_ids=ids, **pixels).last_hidden_state
        trained = targets >= 0
        loss = nn.functional.cross_entropy(model.lm_head(hidden[trained]), targets[trained])
        _step(optimizer, loss, parameters, _schedule(step, steps, 1.5e-3))
        recent.append(loss.item())
        if step % 50 == 49 or step == made - 1:
            mean = sum(recent) / len(recent)
            print(f"whole {step + 1:5d}/{made}  loss {mean:.4f}  {time.monotonic() - began:.0f} s", flush=True)
            recent = []
    return loss.item()


def build(out: str, *, seed: int, look: Look, recipe: Recipe) -> None:
    """Train from `seed` and write the checkpoint to `out`, in the hub's layout."""
    from vig_ray.model.export import save_checkpoint

    torch.manual_seed(seed)
    processor = build_processor(look)
    model: Any = build_model(processor)
    if look.start:
        take_over(model, processor.tokenizer, look.start, tower=look.tower)
    formatter = LlavaFormatter(
        processor.tokenizer,
        processor.image_processor,
        image_token_id=model.config.image_token_id,
        num_image_tokens=(look.side // PATCH) ** 2,
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens", flush=True)
    model.train()
    if recipe.tower_steps:
        train_tower(
            model, formatter, steps=recipe.tower_steps, batch=TOWER_BATCH, rng=random.Random(seed), look=look
        )  # fmt: skip
    train_whole(
        model, formatter, steps=recipe.steps, batch=recipe.batch, pool=recipe.pool, rng=random.Random(seed + 1),
        look=look, stop=recipe.stop,
    )  # fmt: skip
    model.eval()
    shutil.rmtree(out, ignore_errors=True)
    save_checkpoint(model, processor, out)
    size = sum(os.path.getsize(os.path.join(out, name)) for name in os.listdir(out))
    print(f"{out}: {size / 1e6:.2f} MB")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", choices=sorted(LOOKS), help="default: first; with --sees hard, the one that has it")
    parser.add_argument(
        "--sees", choices=sorted(SEES), help="what the model learns to see, by default all; needs --out"
    )
    parser.add_argument("--out", help="folder of the checkpoint (default: inside the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, help="optimizer steps for the tower alone")
    parser.add_argument("--steps", type=int, help="optimizer steps for the whole model")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--pool", type=int, help="different training samples")
    parser.add_argument("--stop", type=int, help="how many of the steps are made")
    options = vars(parser.parse_args())
    look = LOOKS[options["look"] or "first"]
    if options["sees"]:
        if options["look"] == "first" or not options["out"]:
            parser.error("--sees is of --look hard, and needs --out: the packaged model sees more")
        look = SEES[options["sees"]]
    given = {name: options[name] for name in Recipe._fields if options[name] is not None}
    recipe = look.recipe._replace(**given)
    build(options["out"] or look.checkpoint, seed=options["seed"], look=look, recipe=recipe)


if __name__ == "__main__":
    main()
