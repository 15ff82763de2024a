"""What a forward changes of a model: whether it may end early, and what is put back if it fails."""
