"""Errors that are meant for a person: their message names the thing and the remedy, and the CLI prints them without a
traceback."""


class UserError(Exception):
    """Something the user can mend: a path, a field, a file's content. Exit code 2."""


class QuestionError(UserError):
    """One question that cannot be asked: its prompt is too long, or its subtitles cannot be read. The message is the reason.
    The caller leaves the question out and goes on."""


class VideoError(Exception):
    """A video that cannot be read; the message is the reason. The caller quarantines the video and goes on."""


class DecoderLost(VideoError):
    """The decoder was killed or overran its deadline: the video itself may be sound, another try may work."""


class TrainingError(Exception):
    """The run cannot go on: a NaN, a dead actor, a call past its deadline. Exit code 1."""


class ActorLost(TrainingError):
    """An actor that died, or was given up because it is silent or hangs. What it was asked may be asked of another one."""


class StoreLost(TrainingError):
    """The weight store has lost what it held, or does not answer. The driver publishes the newest weights again."""


class Overdue(TrainingError):
    """A call that was not done within its deadline."""


class Stopped(Exception):
    """The run was told to stop, and did so after a whole step; the message says how to go on. Exit code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
