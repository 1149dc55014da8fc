"""What an experiment has seen, in one SQLite file: designs, assignments, decisions, outcomes, and stops.

Each row is written when what it says is known, and never changed: a decision without an outcome has no
outcome row. A call that has returned is on the disk (WAL with synchronous=FULL), so that a process that is
killed loses nothing that it was told is kept; several calls can share one wait (:meth:`Store.together`). The
same row again changes nothing; a different one under the same id is refused.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from layer3.ab.assignment import Arm
from layer3.ab.records import Decision, Outcome, Row, Stop, check_decision, check_outcome
from layer3.errors import DataError, StoreError

__all__ = ["SCHEMA", "Store"]

#: Version of the tables; kept in the file as user_version.
SCHEMA: Final = 1
#: Says that a SQLite file is one of ours: "HAB1".
_APPLICATION: Final = 0x48414231
_WAIT_S: Final = 10.0
#: How a write begins, is kept, and is undone: alone, or as a part of one that has begun.
_ALONE: Final = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_WITHIN: Final = ("SAVEPOINT part", "RELEASE part", ("ROLLBACK TO part", "RELEASE part"))
_TABLES: Final = """
CREATE TABLE experiment (
    name TEXT PRIMARY KEY, design TEXT NOT NULL, started_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE assignment (
    experiment TEXT NOT NULL REFERENCES experiment, unit TEXT NOT NULL,
    arm TEXT NOT NULL CHECK (arm IN ('policy', 'kelly')), share REAL NOT NULL, assigned_ns INTEGER NOT NULL,
    PRIMARY KEY (experiment, unit)
) STRICT, WITHOUT ROWID;
CREATE TABLE decision (
    id TEXT PRIMARY KEY, experiment TEXT NOT NULL REFERENCES experiment, unit TEXT NOT NULL,
    arm TEXT NOT NULL CHECK (arm IN ('policy', 'kelly')),
    how TEXT NOT NULL CHECK (how IN ('assigned', 'forced', 'stopped')),
    symbol TEXT NOT NULL, strategy TEXT NOT NULL, kelly_usd REAL NOT NULL, policy_usd REAL NOT NULL,
    portfolio_value REAL NOT NULL CHECK (portfolio_value > 0), source TEXT NOT NULL,
    decided_ns INTEGER NOT NULL, recorded_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX decision_experiment ON decision (experiment, decided_ns);
CREATE TABLE outcome (
    decision_id TEXT PRIMARY KEY REFERENCES decision, pnl_usd REAL NOT NULL, realised_return REAL NOT NULL,
    duration_s REAL NOT NULL CHECK (duration_s >= 0), recorded_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE stop (
    experiment TEXT PRIMARY KEY REFERENCES experiment, reason TEXT NOT NULL, stopped_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


class Store:
    """The file at ``path``; safe for threads and processes. ``read_only``: it must exist, and is not changed.

    Every method raises StoreError where the file cannot be read or written; nothing of the call is kept then.

    Raises
    ------
    DataError : the file is missing (``read_only``), is no such store, has another schema, or cannot be used
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = threading.RLock()
        if read_only and not path.is_file():
            raise DataError(f"there is no experiment store at {path}: say --store=FILE, the file that decisions go to")
        try:
            address = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._connection = sqlite3.connect(
                address, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(read_only)
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be used as an experiment store: {error}") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that this thread writes inside is on the disk at the end, with one wait; or none of it, and an error.

        A call inside that raises a DataError leaves nothing behind, and the others stand.
        """
        with self._writing():
            yield

    def begin(self, name: str, design: str, now_ns: int) -> tuple[str, int]:
        """Write an experiment's design unless the name is known; its design and start as they are kept."""
        with self._writing() as cursor:
            cursor.execute("INSERT INTO experiment VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (name, design, now_ns))
            return self._experiment(cursor, name)

    def experiment(self, name: str) -> tuple[str, int]:
        """The design (JSON) of an experiment and when it began; DataError that lists the names for an unknown one."""
        with self._reading() as cursor:
            return self._experiment(cursor, name)

    def names(self) -> tuple[str, ...]:
        """The experiments in this file, the first begun first."""
        with self._reading() as cursor:
            return tuple(row[0] for row in cursor.execute("SELECT name FROM experiment ORDER BY started_ns, name"))

    def assigned(self, experiment: str, unit: str) -> tuple[Arm, float] | None:
        """The arm of a unit and the share it was assigned under; ``None`` for a unit that has none yet."""
        with self._reading() as cursor:
            return _assigned(cursor, experiment, unit)

    def assign(self, experiment: str, unit: str, arm: Arm, share: float, now_ns: int) -> tuple[Arm, float]:
        """Write a unit's arm unless it has one; what is kept. Of two processes at once the first one's holds."""
        with self._writing() as cursor:
            cursor.execute(
                "INSERT INTO assignment VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (experiment, unit, arm.value, share, now_ns),
            )
            kept = _assigned(cursor, experiment, unit)
        assert kept is not None
        return kept

    def has_decision(self, decision_id: str) -> bool:
        """Whether a decision of this id was written, in any experiment."""
        with self._reading() as cursor:
            return cursor.execute("SELECT 1 FROM decision WHERE id = ?", (decision_id,)).fetchone() is not None

    def add_decision(self, decision: Decision, now_ns: int, share: float | None = None) -> None:
        """Write a decision; the same one again changes nothing. With ``share`` its unit's arm too, if it has none.

        Raises
        ------
        DataError : a value that cannot be used, an arm that its unit was not assigned to, or another decision
            under the same id
        """
        check_decision(decision)
        row = _decision_row(decision)
        with self._writing() as cursor:
            if share is not None:
                self.assign(decision.experiment, decision.unit, decision.arm, share, now_ns)
            cursor.execute(f"SELECT {_DECISION} FROM decision AS d WHERE d.id = ?", (decision.id,))
            known = cursor.fetchone()
            if known is None:
                kept = _assigned(cursor, decision.experiment, decision.unit)
                if decision.how == "assigned" and (kept is None or kept[0] is not decision.arm):
                    raise DataError(
                        f"decision {decision.id!r} says that its unit was assigned to {decision.arm.value}, which the "
                        "store does not: take what assign() gives"
                    )
                cursor.execute(f"INSERT INTO decision VALUES ({', '.join('?' * 13)})", (*row, now_ns))
            elif known != row:
                raise DataError(
                    f"decision {decision.id!r} was recorded before with {_first_change(_DECISION, known, row)}: "
                    "an id belongs to one decision, give the new one an id of its own"
                )

    def add_outcome(self, experiment: str, outcome: Outcome, now_ns: int, latest_ns: int) -> Decision:
        """Write an outcome; the same one again changes nothing. The decision that it belongs to.

        ``latest_ns``: a trade that closed after it is not known yet.

        Raises
        ------
        DataError : a value that cannot be used, a decision that ``experiment`` does not have, another outcome
            for the same decision, or a trade that has not closed yet
        """
        check_outcome(outcome)
        row = (outcome.decision_id, float(outcome.pnl_usd), float(outcome.realised_return), float(outcome.duration_s))
        with self._writing() as cursor:
            cursor.execute(
                f"SELECT {_DECISION} FROM decision AS d WHERE d.id = ? AND d.experiment = ?",
                (outcome.decision_id, experiment),
            )
            found = cursor.fetchone()
            if found is None:
                raise DataError(
                    f"an outcome for decision {outcome.decision_id!r}, which experiment {experiment!r} in {self._path} "
                    "does not have: record the decision first"
                )
            decision = _decision(found)
            if decision.decided_ns + outcome.duration_s * 1e9 > latest_ns:
                raise DataError(
                    f"the outcome of decision {outcome.decision_id!r} after {outcome.duration_s:g} s lies in the "
                    "future: record it when the trade has closed"
                )
            cursor.execute(f"SELECT {_OUTCOME} FROM outcome AS o WHERE o.decision_id = ?", (outcome.decision_id,))
            known = cursor.fetchone()
            if known is None:
                cursor.execute("INSERT INTO outcome VALUES (?, ?, ?, ?, ?)", (*row, now_ns))
            elif known != row:
                raise DataError(
                    f"the outcome of decision {outcome.decision_id!r} was recorded before with "
                    f"{_first_change(_OUTCOME, known, row)}: an outcome is final, record it once its trade is closed"
                )
        return decision

    def stop(self, experiment: str, reason: str, now_ns: int) -> Stop:
        """Stop the policy's arm unless it is stopped; the stop that is kept."""
        with self._writing() as cursor:
            cursor.execute("INSERT INTO stop VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (experiment, reason, now_ns))
            cursor.execute("SELECT reason, stopped_ns FROM stop WHERE experiment = ?", (experiment,))
            return Stop(*cursor.fetchone())

    def stopped(self, experiment: str) -> Stop | None:
        """When and why the policy's arm was stopped; ``None`` where it was not."""
        with self._reading() as cursor:
            cursor.execute("SELECT reason, stopped_ns FROM stop WHERE experiment = ?", (experiment,))
            found = cursor.fetchone()
        return Stop(*found) if found else None

    def gains(self, experiment: str, arm: Arm) -> list[tuple[int, float]]:
        """When each closed trade of an arm closed (UTC nanoseconds) and its return on the portfolio; forced ones
        and those after a stop are left out."""
        with self._reading() as cursor:
            cursor.execute(
                "SELECT d.decided_ns + CAST(round(o.duration_s * 1e9) AS INTEGER), o.pnl_usd / d.portfolio_value "
                "FROM decision AS d JOIN outcome AS o ON o.decision_id = d.id "
                "WHERE d.experiment = ? AND d.arm = ? AND d.how = 'assigned'",
                (experiment, arm.value),
            )
            return cursor.fetchall()

    def rows(self, experiment: str) -> list[Row]:
        """Every decision of an experiment with what is known of it, in the order of decision."""
        with self._reading() as cursor:
            cursor.execute(
                f"SELECT {_DECISION}, a.share, {_OUTCOME}, o.recorded_ns FROM decision AS d "
                "LEFT JOIN assignment AS a ON a.experiment = d.experiment AND a.unit = d.unit "
                "LEFT JOIN outcome AS o ON o.decision_id = d.id "
                "WHERE d.experiment = ? ORDER BY d.decided_ns, d.id",
                (experiment,),
            )
            found = cursor.fetchall()
        return [
            Row(_decision(row[:12]), row[12], Outcome(*row[13:17]) if row[13] is not None else None, row[17] or 0)
            for row in found
        ]

    def _prepare(self, read_only: bool) -> None:
        cursor = self._connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        tables = cursor.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and not read_only:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        if not read_only:
            cursor.execute("BEGIN IMMEDIATE")
            # Another process may have made the tables meanwhile.
            if not cursor.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in filter(str.strip, _TABLES.split(";")):
                    cursor.execute(statement)
                cursor.execute(f"PRAGMA application_id = {_APPLICATION}")
                cursor.execute(f"PRAGMA user_version = {SCHEMA}")
            cursor.execute("COMMIT")
        application = cursor.execute("PRAGMA application_id").fetchone()[0]
        version = cursor.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise DataError(f"{self._path} is a SQLite file, but no experiment store: name another file")
        if version != SCHEMA:
            raise DataError(
                f"{self._path} has schema {version}, this program reads and writes {SCHEMA}: "
                "use the program version that wrote it, or begin a new file"
            )

    def _experiment(self, cursor: sqlite3.Cursor, name: str) -> tuple[str, int]:
        cursor.execute("SELECT design, started_ns FROM experiment WHERE name = ?", (name,))
        found = cursor.fetchone()
        if found is None:
            known = [row[0] for row in cursor.execute("SELECT name FROM experiment ORDER BY started_ns, name")]
            told = f"it holds {', '.join(map(repr, known))}" if known else "it holds no experiment yet"
            raise DataError(f"{self._path} knows no experiment {name!r}: {told}")
        return found[0], found[1]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            try:
                yield self._connection.cursor()
            except sqlite3.Error as error:
                raise StoreError(f"{self._path} cannot be read: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            begin, keep, undo = _WITHIN if self._connection.in_transaction else _ALONE
            try:
                cursor = self._connection.cursor()
                cursor.execute(begin)
                try:
                    yield cursor
                    cursor.execute(keep)
                except BaseException:
                    # A full disk ends a transaction by itself.
                    if self._connection.in_transaction:
                        for statement in undo:
                            cursor.execute(statement)
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"{self._path} was not written: {error}") from error


_DECISION: Final = (
    "d.id, d.experiment, d.unit, d.arm, d.how, d.symbol, d.strategy, d.kelly_usd, d.policy_usd, d.portfolio_value, "
    "d.source, d.decided_ns"
)
_OUTCOME: Final = "o.decision_id, o.pnl_usd, o.realised_return, o.duration_s"


def _decision_row(decision: Decision) -> tuple[Any, ...]:
    return (
        decision.id,
        decision.experiment,
        decision.unit,
        decision.arm.value,
        decision.how,
        decision.symbol,
        decision.strategy,
        float(decision.kelly_usd),
        float(decision.policy_usd),
        float(decision.portfolio_value),
        decision.source,
        int(decision.decided_ns),
    )


def _decision(row: tuple[Any, ...]) -> Decision:
    name, experiment, unit, arm, *rest = row
    return Decision(name, experiment, unit, Arm(arm), *rest)


def _assigned(cursor: sqlite3.Cursor, experiment: str, unit: str) -> tuple[Arm, float] | None:
    cursor.execute("SELECT arm, share FROM assignment WHERE experiment = ? AND unit = ?", (experiment, unit))
    found = cursor.fetchone()
    return (Arm(found[0]), found[1]) if found else None


def _first_change(names: str, before: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    """The first field whose value differs, in words."""
    fields = [name.strip().partition(".")[2] for name in names.split(",")]
    name, old, new = next((name, old, new) for name, old, new in zip(fields, before, now, strict=True) if old != new)
    return f"{name} {old!r}, now it is {new!r}"
