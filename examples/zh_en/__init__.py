"""The pieces of the Chinese-to-English demo: grammar, data and tokenisers, model."""
