"""Training of one stream: training loop, optimizers, schedules, checkpoints and metrics."""
