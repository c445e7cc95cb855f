"""Plans and executes the training runs of a study."""
