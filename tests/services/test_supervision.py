"""The life of an actor: every way it can go, and the ways that must not exist."""

from __future__ import annotations

import random

import pytest

from services.supervision import State, Supervisor


def supervisor(count: int = 1, patience: int = 3, restarts: int = 2) -> Supervisor:
    return Supervisor(count, patience, restarts)


def states(pool: Supervisor) -> list[str]:
    return [life.state.value for life in pool.lives]


def due(pool: Supervisor, now: float) -> list[int]:
    """The places whose actor is to be restarted now."""
    return [place for place, life in enumerate(pool.lives) if life.will_restart and life.restart_at <= now]


def test_an_actor_works_once_it_reports_the_version_wanted() -> None:
    pool = supervisor(2)
    assert (states(pool), pool.ready()) == (["constructing", "constructing"], [])
    pool.want(4)
    pool.answered(0)
    assert states(pool) == ["constructing", "constructing"], "to answer is not to be loaded"
    pool.reported(0, 3)
    pool.reported(1, 4)
    assert (states(pool), pool.ready()) == (["behind", "healthy"], [1])
    pool.reported(0, 4)
    assert pool.ready() == [0, 1]
    pool.want(5)
    assert (states(pool), pool.ready()) == (["behind", "behind"], [])


def test_a_restarted_actor_is_not_healthy_until_it_says_what_it_holds() -> None:
    pool = supervisor()
    pool.reported(0, 0)
    pool.missed(0, now=1.0)
    pool.died(0, now=1.0)
    assert due(pool, 1.0) == [0]
    pool.restarted(0)
    assert (states(pool), pool.lives[0].version, pool.lives[0].missed) == (["restarting"], None, 0)
    pool.answered(0)
    pool.want(7)
    pool.want(0)
    assert states(pool) == ["restarting"], "neither a probe nor a new version makes it healthy"
    pool.reported(0, 0)
    assert states(pool) == ["healthy"]


def test_a_suspect_gets_no_work_and_comes_back_or_is_given_up() -> None:
    pool = supervisor(patience=3)
    pool.reported(0, 0)
    pool.missed(0, now=1.0)
    pool.missed(0, now=2.0)
    assert (states(pool), pool.ready()) == (["suspect"], [])
    pool.want(1)
    assert states(pool) == ["suspect"], "a new version does not make it answer"
    pool.answered(0)
    assert states(pool) == ["behind"]
    for now in (3.0, 4.0, 5.0):
        pool.missed(0, now)
    assert states(pool) == ["dead"]


def test_restarts_wait_longer_each_time_and_end() -> None:
    pool = supervisor(restarts=3)
    for wait in (0.0, 1.0, 2.0):
        pool.died(0, now=100.0)
        pool.died(0, now=150.0)
        assert due(pool, 100.0 + wait - 0.01) == [], "the same death heard of twice is one"
        assert due(pool, 100.0 + wait) == [0]
        assert not pool.is_lost
        pool.restarted(0)
        assert due(pool, 1e9) == []
    pool.died(0, now=100.0)
    assert (pool.is_lost, due(pool, 1e9)) == (True, [])


def test_a_finished_call_forgives_the_deaths_before_it() -> None:
    pool = supervisor(restarts=1)
    for _ in range(20):
        pool.died(0, now=0.0)
        assert due(pool, 0.0) == [0]
        pool.restarted(0)
        pool.reported(0, 0)
        pool.finished(0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_only_those_who_hold_the_wanted_version_work(seed: int) -> None:
    """A report is what an actor holds: between its restart and its next report nobody knows."""
    chance, pool = random.Random(seed), supervisor(3, patience=2, restarts=50)
    known: list[int | None] = [None] * 3
    for now in range(400):
        place = chance.randrange(3)
        match chance.randrange(7):
            case 0:
                pool.want(now)
            case 1 | 2 if pool.lives[place].state != State.DEAD:
                known[place] = pool.wanted - chance.randrange(2)
                pool.reported(place, known[place] or 0)
                known[place] = pool.lives[place].version
            case 3:
                pool.answered(place)
            case 4:
                pool.missed(place, now)
            case 5:
                pool.died(place, now)
            case _:
                for dead in due(pool, now):
                    pool.restarted(dead)
                    known[dead] = None
        working = pool.ready()
        assert all(known[one] == pool.wanted for one in working)
        assert all(pool.lives[one].missed == 0 for one in working)
