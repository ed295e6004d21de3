"""The two ways a run may end badly, told apart by who can mend it."""


class UserError(ValueError):
    """A mistake in a recipe, a data file or a command line.

    The message names the key or row, the value, what was expected and how to mend it.
    The command line prints it without a traceback and exits with 2.
    """


class RunError(RuntimeError):
    """Something failed while a correct run was under way (a worker died, a deadline passed).

    The command line prints the message, says how to resume, and exits with 1.
    """
