"""The one error a user's input can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a picture, a setting.

    The message names the thing, what was expected, what came, and the way out. The
    command line prints it without a traceback and exits with code 2.
    """
