"""What a person looks at: samples, tokens and their gains."""
