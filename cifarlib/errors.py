"""What ends a command or a notebook with one line instead of a traceback."""


class Stated(Exception):
    """The message says all there is to say; it becomes one line, whatever it quotes."""

    def __init__(self, message: str):
        super().__init__(" ".join(line.strip() for line in message.splitlines()))

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the one line, not a page of frames above it."""
        return [f"{type(self).__name__}: {self}"]


class InputError(Stated):
    """Something the user gave can't be used: what was wrong, what was expected, what to do."""


class Preempted(Stated):
    """A run was stopped before its end; the message says how to go on."""


class OtherMachine(Stated):
    """A run was begun with another kind of device or in another precision: it waits for a machine of that kind."""
