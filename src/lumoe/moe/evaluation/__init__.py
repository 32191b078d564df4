"""Quality: perplexity, divergence, and a second opinion."""
