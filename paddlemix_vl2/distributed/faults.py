"""The error of a process when another one is gone.

``paddle.distributed.launch`` checks every three seconds whether one of its processes has failed, and ends the
others. Those that wait for the lost one notice it first: gloo reports it at once where it has died, and after
30 seconds where it hangs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

# In what gloo raises: a file of its own, or a pair that an earlier timeout has closed.
_OF_GLOO = ("gloo/transport", "caused pair closure")


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turn what gloo raises, when another process is gone, into a line that says so.

    Raises:
        ConnectionError: another process has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _OF_GLOO):
            raise
        raise ConnectionError(
            "another process of this run has ended or does not answer; it is the one whose log (workerlog.N) "
            "does not end with this line. resume_from_checkpoint=auto goes on from the last checkpoint "
            f"({str(error).strip().splitlines()[-1]})"
        ) from error
