"""Fine-tuning: `start.train(RunConfig(...), parts)` is the process that trains; `rescoldo.train` is the short form."""
