"""What a model costs and does: counted, timed, measured."""
