"""Examples: read from files, a folder or the Hub, in one form, divided into splits."""
