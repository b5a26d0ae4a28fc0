"""The engine's operations: in PyTorch (the reference) and in C, and the choice between them."""
