"""Whatever answers a prompt: this package's engine with or without an adapter, and servers."""
