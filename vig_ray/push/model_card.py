"""The card of a trained model's repository, filled from its facts."""

from __future__ import annotations

from typing import Any

from vig_ray.push import markdown

Json = dict[str, Any]


def model_card(to: str, facts: Json, license: str | None) -> str:
    """The README.md of repository `to`. `license`: the base model's and the data's, None where nobody has said it."""
    base = facts["base_model_on_hub"]
    options, result, selection = facts["options"], facts["result"], facts["selection"]
    data = {
        "license": license or "other",
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["visual-information-gain", "vig-ray"],
    }
    name = f"[{markdown.cell(base)}](https://huggingface.co/{base})" if base else markdown.code(facts["base_model"])
    rows = [
        ("base model", f"{name} (fingerprint {markdown.code(facts['base_model_fingerprint'])})"),
        (
            "prompt",
            f"template {markdown.code(facts['template'])} (fingerprint {markdown.code(facts['template_fingerprint'])})",
        ),
        ("dataset", markdown.code(facts["data"]["name"])),
        ("trained on", _trained_on(selection)),
        ("precision", f"{markdown.cell(facts['dtype'])}; trained by {markdown.cell(facts['workers'])}"),
        ("versions", markdown.versions(facts)),
    ]
    results = [("steps", f"{result['steps']:,}"), ("samples", f"{result['samples']:,}")]
    results += [("last loss", f"{result['loss']:.4f} nats a token")] if result["loss"] is not None else []
    if result["held_out"]:
        active, all_tokens = result["held_out"]
        results += [
            ("held-out loss, active tokens", f"{active:.4f} nats a token"),
            ("held-out loss, all answer tokens", f"{all_tokens:.4f} nats a token"),
        ]
    if result["unusable"]:
        results += [("samples that could not be trained on", f"{result['unusable']:,}")]
    set_options = [(markdown.code(option), markdown.cell(_written(value))) for option, value in options.items()]
    parts = [
        f"# {markdown.cell(to.rpartition('/')[2])}",
        f"{name}, trained on {_trained_on(selection)} of {markdown.cell(facts['data']['name'])} with vig-ray.",
        "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'model = AutoModelForImageTextToText.from_pretrained("{to}")\n'
        f'processor = AutoProcessor.from_pretrained("{to}")\n```',
        f"## How it was trained\n\n{markdown.table(('', ''), rows)}",
        f"## Result\n\n{markdown.table(('', ''), results)}",
        f"## Options\n\n{markdown.table(('option', 'value'), set_options)}",
        markdown.licence(license, "the base model and the dataset's rows"),
        markdown.cite(),
    ]
    return markdown.card(data, "\n\n".join(parts))


def _trained_on(selection: Json | None) -> str:
    if not selection:
        return "all answer tokens of all samples"
    kept = selection["kept"][0]
    total = kept["total"]
    return (
        f"{total['scored'] + total['text_only']:,} samples and {total['active']:,} active tokens that the strategy "
        f"{markdown.code(selection['strategy'])} at {kept['share']:g} % kept"
    )


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "by default" if value is None else str(value)
