class UsageError(ValueError):
    """A command cannot do what it was asked; the message names the argument and the remedy.

    Commands print the message alone, without a traceback, and exit with status 2.
    """
