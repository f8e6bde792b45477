"""Reading ahead: same batches, errors carried over, thread ended."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.loading.prefetch import DEPTH, prefetch


def test_same_items_in_the_same_order() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))
    assert list(prefetch(iter([]))) == []


def test_prepare_is_applied() -> None:
    assert list(prefetch(iter(range(5)), lambda x: x * 2)) == [0, 2, 4, 6, 8]


def test_an_error_of_the_reader_is_raised_after_the_good_batches() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    batches = prefetch(broken())
    assert next(batches) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


def test_closing_ends_the_thread_and_reads_no_further() -> None:
    read = []

    def endless() -> Iterator[int]:
        i = 0
        while True:
            read.append(i)
            yield i
            i += 1

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "manygate-prefetch"]

    batches = prefetch(endless())
    assert next(batches) == 0
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    assert len(read) <= DEPTH + 3
