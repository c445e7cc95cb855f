"""The queue of a live pipeline: bounded, in order, and it counts what it lets go."""

from __future__ import annotations

import threading
import time

from two_stream.streaming.live.pipeline import Inbox


def test_a_full_inbox_drops_its_oldest_and_counts_them() -> None:
    inbox: Inbox[int] = Inbox(3, drop=True)
    assert all(inbox.put(number) for number in range(8))
    assert (len(inbox), inbox.dropped) == (3, 5)
    assert inbox.take(most=2) == [5, 6]
    assert inbox.take(most=2) == [7]


def test_a_full_inbox_that_may_not_drop_waits() -> None:
    inbox: Inbox[int] = Inbox(1, drop=False)
    inbox.put(0)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (inbox.put(1), done.set()))
    thread.start()
    assert not done.wait(0.05)
    assert inbox.take() == [0]
    assert done.wait(5.0)
    thread.join()
    assert (inbox.take(), inbox.dropped) == ([1], 0)


def test_a_closed_inbox_lets_nothing_in_and_gives_what_it_has() -> None:
    inbox: Inbox[int] = Inbox(4, drop=False)
    inbox.put(7)
    inbox.close()
    assert not inbox.put(8)
    assert not inbox.over
    assert inbox.take(most=9) == [7]
    assert inbox.over
    assert inbox.take() == []  # without waiting


def test_closing_wakes_who_waits_to_put() -> None:
    inbox: Inbox[int] = Inbox(1, drop=False)
    inbox.put(0)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(inbox.put(1)))
    thread.start()
    time.sleep(0.02)
    inbox.close(empty=True)
    thread.join(5.0)
    assert answers == [False]
    assert inbox.over


def test_nothing_in_time_is_an_empty_list() -> None:
    assert Inbox[int](1, drop=False).take(timeout=0.01) == []
