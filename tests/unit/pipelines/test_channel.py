"""The queue between producer and consumer: bounded, and no thread waits in it for ever."""

from __future__ import annotations

import threading

import pytest

from pipelines.channel import Channel


def test_items_arrive_in_order_and_no_more_than_its_capacity_is_held():
    channel: Channel[int] = Channel(2)
    held: list[int] = []
    out: list[int] = []

    def produce() -> None:
        for i in range(50):
            channel.put(i)
            held.append(i)
        channel.end()

    thread = threading.Thread(target=produce)
    thread.start()
    while (item := channel.get()) is not None:
        out.append(item)
        assert len(held) - len(out) <= 2
    thread.join()
    assert out == list(range(50))


def test_closing_frees_a_waiting_producer():
    channel: Channel[int] = Channel(1)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.extend(channel.put(i) for i in range(2)))
    thread.start()
    while not results:
        pass
    channel.close()
    thread.join()
    assert results == [True, False]


def test_closing_frees_a_waiting_consumer():
    channel: Channel[int] = Channel(1)
    results: list[int | None] = []
    thread = threading.Thread(target=lambda: results.append(channel.get()))
    thread.start()
    channel.close()
    thread.join()
    assert results == [None]


def test_an_error_comes_after_the_items_before_it():
    channel: Channel[int] = Channel(2)
    channel.put(1)
    channel.end(OSError("disk"))
    assert channel.get() == 1
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            channel.get()
