"""Reading ahead and writing behind: order, errors, and how much waits."""

import threading

import pytest
from tiny_world import SMILE

from asyrp.acceleration.overlap import Background, prefetched
from asyrp.report import pictures


def test_items_come_in_order_and_ahead_of_the_caller():
    made = []

    def items():
        for i in range(6):
            made.append((i, threading.current_thread() is threading.main_thread()))
            yield i

    seen = []
    for item in prefetched(items(), ahead=2):
        seen.append((item, len(made)))
    assert [item for item, _ in seen] == list(range(6))
    assert all(count <= item + 4 for item, count in seen)
    assert not any(main for _, main in made)


def test_prefetching_overlaps_with_the_caller():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    for _ in prefetched(items(), ahead=1):
        assert second.wait(5)


def test_prefetched_error_is_raised_in_order():
    def items():
        yield 1
        raise ValueError("unreadable")

    coming = prefetched(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="unreadable"):
        next(coming)


def test_abandoned_prefetch_ends():
    others = set(threading.enumerate())
    coming = prefetched(iter(range(100)))
    next(coming)
    reading = set(threading.enumerate()) - others
    assert reading
    coming.close()
    for thread in reading:
        thread.join(5)
    assert not any(thread.is_alive() for thread in reading)


def test_calls_are_made_in_order_and_all_of_them():
    done = []
    with Background(most=2) as later:
        for i in range(20):
            later(done.append, i)
    assert done == list(range(20))


def test_queue_is_bounded():
    gate, done = threading.Event(), []
    with Background(most=2) as later:
        later(gate.wait, 5)
        later(done.append, 1)
        threading.Timer(0.05, gate.set).start()
        later(done.append, 2)
        assert gate.is_set()


def fail():
    raise OSError("disk full")


def broken():
    raise ValueError("a slip in the program")


def test_error_of_a_call_is_raised():
    with pytest.raises(ValueError, match="slip"), Background() as later:
        later(broken)
    with Background() as later:
        later(broken)
        with pytest.raises(ValueError, match="slip"):
            later.wait()
    with pytest.raises(ValueError, match="slip"), Background(most=1) as later:
        later(broken)
        later(print)
        raise AssertionError("the second call waits for the first one")


def test_unwritable_file_is_reported_once_and_ignored(caplog):
    done = []
    with Background() as later:
        for call in (fail, fail, lambda: done.append(1)):
            later(call)
    assert done == [1]
    assert [record.message for record in caplog.records] == [
        "a picture cannot be written, continuing without it: disk full",
        "2 pictures could not be written",
    ]


def test_error_of_the_caller_is_not_masked():
    with pytest.raises(KeyError), Background() as later:
        later(fail)
        raise KeyError


def test_pictures_that_cannot_be_written_stop_no_run(run_learned, results, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "save", lambda *args: fail())
    assert run_learned("--run_test", *SMILE) == 0
    assert "a picture cannot be written, continuing without it" in capsys.readouterr().err
    assert (results / "report.html").exists()
