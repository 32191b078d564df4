"""What lies in a model's folder: weights, architecture, manifest, tokenizer."""
