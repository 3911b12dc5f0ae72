"""A storage that waits: a database that restarts or a disk that is full ends no study."""

import errno
import sys
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from search.errors import StudyError, first_line

_PATIENCE = 600.0  # seconds
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one again and again
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ETIMEDOUT)


def patient(
    storage: BaseStorage,
    place: str,
    recover: Callable[[], None] = lambda: None,
    patience: float = _PATIENCE,
) -> BaseStorage:
    """The same storage, each of whose calls is tried again while the storage is away.

    A call that had reached the storage before its answer was lost does no harm when it is
    repeated: attributes and values are set to what they are, a trial that is finished already is
    left so, and one that is there already is not begun again.

    Args:
        storage: Of any kind.
        place: What it is called in messages.
        recover: Called before each new try.
        patience: For how long to wait, in seconds.

    Raises:
        StudyError: By any method, if the storage stays away.
    """
    waiting = _Waiting(place, recover, patience)
    methods = {
        name: _forwarding(storage, name, waiting)
        for name in dir(BaseStorage)
        if not name.startswith("_") and callable(getattr(BaseStorage, name))
    }
    return type("PatientStorage", (BaseStorage,), methods)()


def insist(call: Callable[[], Any], place: str) -> Any:
    """Call until it works, for as long as a storage is waited for.

    Args:
        call: What may be called again if it failed.
        place: What the storage is called in messages.

    Raises:
        StudyError: If the storage stays away.
    """
    return _Waiting(place, lambda: None, _PATIENCE).attempt(call)


def _forwarding(storage: BaseStorage, name: str, waiting: "_Waiting") -> Callable[..., Any]:
    method = getattr(storage, name)

    def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
        def done() -> Any:
            return _begun(storage, *args, **kwargs) if name == "create_new_trial" else None

        return waiting.attempt(lambda: method(*args, **kwargs), done)

    return call


def _begun(
    storage: BaseStorage, study_id: int, template_trial: FrozenTrial | None = None
) -> int | None:
    """The trial that a call began whose answer was lost; None if it began none."""
    trials = storage.get_all_trials(study_id, deepcopy=False)
    if not trials or template_trial is None:
        return None
    last = trials[-1]
    same = (last.number, last.params) == (template_trial.number, template_trial.params)
    return last._trial_id if same else None  # pyright: ignore[reportPrivateUsage]


class _Waiting:
    """Tries again, and says so once for each time that the storage is away."""

    def __init__(self, place: str, recover: Callable[[], None], patience: float) -> None:
        self._place, self._recover, self._patience = place, recover, patience

    def attempt(self, call: Callable[[], Any], done: Callable[[], Any] = lambda: None) -> Any:
        """Call until it works; from the second time on only if `done` finds nothing."""
        begun, tries = time.monotonic(), 0
        while True:
            try:
                if tries:
                    self._recover()
                    if (found := done()) is not None:
                        return found
                return call()
            except UpdateFinishedTrialError:
                if not tries:
                    raise
                return True  # the try before reached the storage after all
            except Exception as error:
                reason = passing(error)
                if reason is None:
                    raise
                if time.monotonic() - begun > self._patience:
                    raise self._given_up(reason) from None
                if not tries:
                    self._tell(reason)
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _tell(self, reason: str) -> None:
        minutes = self._patience / 60
        text = f"storage: {self._place}: {reason}; trying again for up to {minutes:g} minutes"
        print(text, file=sys.stderr, flush=True)

    def _given_up(self, reason: str) -> StudyError:
        return StudyError(
            [
                f"storage: {self._place}: {reason}; everything that was finished before is kept: "
                "start the same command again when it is back"
            ]
        )


def passing(error: Exception) -> str | None:
    """Why a storage can't be used now, if that may pass; None for any other error."""
    if isinstance(error, StorageInternalError):
        return passing(error.__cause__) if isinstance(error.__cause__, Exception) else None
    if isinstance(error, OSError) and error.errno in _PASSING:
        return first_line(error)
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, OperationalError | InterfaceError | PendingRollbackError):
        return first_line(error)
    return None
