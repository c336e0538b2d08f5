"""One fine-tuning run: its phases, its loop, and the folder of what it leaves."""
