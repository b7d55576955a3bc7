"""The one exception that mavlite raises for a mistake of its user."""


class MavliteError(Exception):
    """Bad input by the user: a wrong prompt, path, config value or file.

    The message is one line that says what was wrong and what to do. The command line prints it as
    `mavlite: error: <message>` and exits with status 2. A mistake of the program stays an ordinary exception.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))            # whatever it quotes, it is one line
