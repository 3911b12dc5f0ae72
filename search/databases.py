"""Optuna's database storage, without what it asks again and again for each parameter.

A trial of 64 parameters takes Optuna 130 queries to store: for each it looks for the trial and for
an earlier trial's range. Trials here come with all their values at once, from one space, so both
are known. In SQLite a commit waits for the disk, some milliseconds for each attribute; with a
write-ahead log it doesn't, and a power cut costs the last trials at most, never the database.
"""

from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import event


class Database(RDBStorage):
    """A database of studies.

    Args:
        url: As SQLAlchemy writes it.
        options: Of `RDBStorage`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, engine_kwargs={"pool_pre_ping": True}, **options)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _relaxed)
            self.engine.dispose()  # connections that are open already

    def _set_trial_param_without_commit(
        self,
        session: Any,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        del previous_distribution
        session.add(
            models.TrialParamModel(
                trial_id=trial_id,
                param_name=param_name,
                param_value=param_value_internal,
                distribution_json=distribution_to_json(distribution),
            )
        )


def _relaxed(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
