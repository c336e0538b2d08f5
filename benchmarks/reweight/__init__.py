"""Sources of unknown quality and a small trusted target: learned weights beside every control."""
