"""The lower optimizer's steps as differentiable functions, recorded and taken again."""
