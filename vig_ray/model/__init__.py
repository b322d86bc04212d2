"""Text and image to model inputs: the only place where a prompt is tokenised and an answer mask is made."""
