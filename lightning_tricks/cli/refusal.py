"""What a command refuses after it has begun."""

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """A mistake of the caller that shows only in what is read; one line says it."""
