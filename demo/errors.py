"""Why a demonstration stops. The message is the last line that its user reads."""


class DemoError(Exception):
    """A step did not do what it shows, or could not be tried."""

    exit_code = 1


class CommandError(DemoError):
    """A command ended otherwise than it should have."""


class GuestError(DemoError):
    """A virtual machine did not start, ended early, or did not say what was waited for."""


class OutOfTimeError(DemoError):
    """The whole demonstration took longer than it may."""


class StoppedError(DemoError):
    """The user or the system asked the demonstration to stop."""

    exit_code = 130
