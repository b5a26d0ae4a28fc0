"""`python -m rescoldo` is the `rescoldo` command."""

from rescoldo.cli.main import main

main()
