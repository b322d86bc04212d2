"""GLM-4.5V: GLM-4.1V with experts behind the first layer."""

from transformers import Glm4vImageProcessor, Glm4vMoeConfig, Glm4vProcessor, Glm4vVideoProcessor

from tests.model.families.base import write
from tests.model.families.glm4v import SIZE, TEMPLATE, glm_tokenizer, parts

EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def make(folder: str) -> None:
    tokenizer = glm_tokenizer()
    given = parts(tokenizer)
    text = given.pop("text_config") | EXPERTS | {"model_type": "glm4v_moe_text"}
    vision = given.pop("vision_config") | {"model_type": "glm4v_moe_vision"}
    processor = Glm4vProcessor(Glm4vImageProcessor(size=SIZE), tokenizer, Glm4vVideoProcessor(), chat_template=TEMPLATE)
    write(folder, Glm4vMoeConfig(text_config=text, vision_config=vision, **given), processor)
