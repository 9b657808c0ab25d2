"""What a service refuses beside wrong parameters. Each error has the HTTP status that it becomes."""

from typing import ClassVar

from ebca.errors import EbcaError


class ServiceError(EbcaError):
    """A call that the service refuses.

    Attributes:
        status: of the HTTP response.
        retry_after: seconds after which the call may succeed; None: it will not by waiting.
    """

    status: ClassVar[int] = 400
    retry_after: int | None = None


class UnreadableError(ServiceError):
    """A body that cannot be read: no JSON, a broken upload, a wrong content type."""


class UnauthorizedError(ServiceError):
    """A call without a valid API key."""

    status = 401


class ForbiddenError(ServiceError):
    """A call from a page of another origin, or to a host name that is not this service's."""

    status = 403


class UnknownJobError(ServiceError):
    """A job, or a part of its result, that does not exist."""

    status = 404


class ConflictError(ServiceError):
    """A call that does not fit the state of a job."""

    status = 409


class TooLargeError(ServiceError):
    """A body, or an image in it, that is larger than the service takes."""

    status = 413


class UnsupportedMediaError(ServiceError):
    """A body of a type that the endpoint does not take."""

    status = 415


class QueueFullError(ServiceError):
    """No more job is taken at the moment."""

    status = 429

    def __init__(self, problem: str, remedy: str, retry_after: int) -> None:
        super().__init__(problem, remedy)
        self.retry_after = retry_after


class UnavailableError(ServiceError):
    """The service is being shut down, or its data cannot be written."""

    status = 503

    def __init__(self, problem: str, remedy: str, retry_after: int = 10) -> None:
        super().__init__(problem, remedy)
        self.retry_after = retry_after
