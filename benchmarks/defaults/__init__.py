"""Which learning rate, scale and upper rate suit each method of the commands."""
