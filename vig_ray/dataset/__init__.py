"""What comes in: datasets in any of the known formats become `samples/`, and their images become pixels."""
