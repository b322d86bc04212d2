"""GLM-4.6V: GLM-4.1V's model with a processor of its own."""

from transformers import Glm46VConfig, Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor

from tests.model.families.base import write
from tests.model.families.glm4v import SIZE, TEMPLATE, glm_tokenizer, parts


def make(folder: str) -> None:
    tokenizer = glm_tokenizer()
    images = Glm46VImageProcessor(size=SIZE)
    processor = Glm46VProcessor(images, tokenizer, Glm46VVideoProcessor(), chat_template=TEMPLATE)
    write(folder, Glm46VConfig(**parts(tokenizer)), processor)
