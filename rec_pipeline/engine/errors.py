"""
Errors a caller can react to, and the exit code the command line gives each.

Codes: 0 ok, 1 unexpected, 2 configuration, 3 input rejected, 4 gate refused or training failed, 5 artefact missing,
damaged or without room, 6 publication failed or no answer from the store, and the old lists are still served, 7 another
publisher holds the lock, 8 publication incomplete: resume it. ``is_transient`` marks errors that may pass by
themselves, so that trying again makes sense.
"""

from typing import ClassVar


class RecPipelineError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code: ClassVar[int] = 1
    is_transient: ClassVar[bool] = False

    @classmethod
    def kinds(cls) -> "dict[str, type[RecPipelineError]]":
        """Return this class and all below it, as far as their modules are loaded, by name."""
        found = {cls.__name__: cls}
        for kind in cls.__subclasses__():
            found |= kind.kinds()
        return found


class ConfigurationError(RecPipelineError):
    """A setting, path or name given by the user cannot be used."""

    exit_code = 2


class InputRejectedError(RecPipelineError):
    """Input data is unreadable, lacks a column, or holds more bad rows than allowed."""

    exit_code = 3


class GateRefusedError(RecPipelineError):
    """A quality gate failed, so nothing is published."""

    exit_code = 4


class LeakageError(RecPipelineError):
    """A split would let a model learn what it is tested on."""


class TrainingDivergedError(RecPipelineError):
    """A loss or a parameter became non-finite."""

    exit_code = 4


class ArtifactIntegrityError(RecPipelineError):
    """A stored artefact is missing, incomplete, does not match its manifest or is laid out by another version."""

    exit_code = 5


class StorageFullError(RecPipelineError):
    """The disk has no room for an artefact; what was there before is untouched."""

    exit_code = 5


class PublishFailedError(RecPipelineError):
    """A publication stopped before anything went live, or the store was not read; what was live is still served."""

    exit_code = 6
    is_transient = True


class PublishRefusedError(PublishFailedError):
    """As ``PublishFailedError``, for a reason that trying again does not change."""

    is_transient = False


class LockHeldError(RecPipelineError):
    """Another publisher holds the lock."""

    exit_code = 7
    is_transient = True


class PublishIncompleteError(RecPipelineError):
    """A publication stopped while going live; resuming it rolls forward."""

    exit_code = 8
    is_transient = True


class UnknownUserError(RecPipelineError):
    """A user id is not known here."""

    exit_code = 2


class InvalidIdError(RecPipelineError):
    """A text cannot be the id of a user or an item."""

    exit_code = 2


class InvalidEventError(RecPipelineError):
    """
    An event breaks a rule.

    Attributes
    ----------
    field, value
        What breaks it, e.g. ``timestamp`` and what was given.
    """

    exit_code = 2

    def __init__(self, message: str, field: str, value: object) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class EventsNotRecordedError(RecPipelineError):
    """The store did not take events, or not all of them; sending them again is safe."""

    exit_code = 6
    is_transient = True


class EventsNotDrainedError(RecPipelineError):
    """The drain of the event stream stopped; the next one goes on where it did."""

    exit_code = 6
    is_transient = True


class StoredValueError(RecPipelineError):
    """A value in the store is not a list of recommendations, or not the one asked for."""

    exit_code = 5


class EmbeddedServerError(RecPipelineError):
    """The embedded store does not start, answer or stop."""

    exit_code = 6
    is_transient = True


class ComputeFailedError(RecPipelineError):
    """The cluster that computes cannot be reached, or its workers keep dying; nothing was made."""

    is_transient = True


class TrackingUnavailableError(RecPipelineError):
    """The experiment tracking store cannot be opened or does not answer."""

    exit_code = 2
    is_transient = True
