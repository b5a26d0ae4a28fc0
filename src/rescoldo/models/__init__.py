"""Models that answer prompts: this package's engine with or without an adapter, and servers."""
