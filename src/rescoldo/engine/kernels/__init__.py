"""The engine's operations: in PyTorch (the reference twins) and in C, and the choice between them."""
