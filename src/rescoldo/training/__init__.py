"""Fine-tuning: `start.train(RunConfig(...), parts)` runs the training; `rescoldo.train` is its short form."""
