"""What a user can mend, said in one line."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where (file and line, or configuration key), and the remedy.
    The command line prints it without a traceback and exits with status 2.
    """


class MissingData(InputError):
    """The raw files of a dataset are nowhere to be found."""
