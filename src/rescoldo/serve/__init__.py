"""An OpenAI-compatible server on the engine: requests are decoded together, each joins and leaves between two steps."""
