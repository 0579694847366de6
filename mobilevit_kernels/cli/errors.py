"""What a command raises when the user, not the program, has to change something."""


class UserError(Exception):
    """A failure that one line explains: the message names the file or argument, what was expected and what came."""
