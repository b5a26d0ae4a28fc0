"""An OpenAI-compatible server on the engine with continuous batching: requests join and leave between two steps."""
