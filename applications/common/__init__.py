"""What the commands share: options, data, models, metrics, training, outputs."""
