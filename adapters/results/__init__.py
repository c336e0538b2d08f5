"""What training leaves: checkpoints, what was learned, figures, a model card."""
