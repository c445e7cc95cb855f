"""Plans and runs the trainings of a study."""
