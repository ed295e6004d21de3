"""The ways a run may end early, by who can mend them."""


class UserError(ValueError):
    """A mistake in a recipe, a data file or a command line.

    The message names the key or row, the value, what was expected and how to mend it.
    The command line prints it without a traceback and exits with 2.
    """


class RunError(RuntimeError):
    """Something failed while a correct run was under way (a worker died, a deadline passed).

    The command line prints the message, says how to resume, and exits with 1.
    """


class Collapsed(RunError):
    """The run has lost what it had learned, or can learn nothing more, and its recipe says that it
    must not go on (`health.on_collapse`). The message is the diagnosis.
    """


class Interrupted(Exception):
    """The user asked the run to stop; the step under way was finished or dropped whole.

    The command line says how to go on, and exits with 130.
    """
