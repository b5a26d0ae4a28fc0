"""People choose between two answers without knowing whose they are: on a local page or in the terminal."""
