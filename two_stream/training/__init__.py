"""Training one stream: loop, optimizers, schedules, checkpoints, tracking."""
