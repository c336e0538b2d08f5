"""Options of the commands: their words, their defaults, what goes together."""
