"""The errors a user's input can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a picture, a setting.

    The message names the thing, what was expected, what came, and the way out. The
    command line prints it without a traceback and exits with code 2.
    """


class NotFiniteError(InputError, FloatingPointError):
    """A loss or a gradient is NaN or infinite; the message names where it shows first.

    Settings or input have caused it: a learning rate, a picture, a checkpoint.
    """
