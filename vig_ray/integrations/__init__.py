"""vig-ray's token weights in other people's trainers: transformers, TRL, ms-swift."""
