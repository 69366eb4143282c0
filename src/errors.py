"""The error a user can mend himself."""


class InputError(ValueError):
    """Something given by the user cannot work; the message says what was given and what would work.

    The command line prints it as one line and exits with code 2, without a traceback.
    """
