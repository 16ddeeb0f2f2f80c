"""Messages come as they were sent, arrays last as long as they are looked at, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.live import wait_for

from fmplex_backend import shared_blocks
from fmplex_backend.messages import BatchDone, GroupAnswer, RunBatch
from fmplex_backend.transport import LARGE, Channel

MB = 1 << 20
Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = Channel.pair()
    with ours, theirs:
        yield ours, theirs


def same(a: Any, b: Any) -> bool:
    """Alike in type, structure and every byte."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return same(a.tolist(), b.tolist()) if a.dtype.hasobject else a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, RunBatch | GroupAnswer | BatchDone):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def cross(ends: Ends, message: Any) -> Any:
    """Send from a thread of its own, so that nothing depends on what the socket can hold."""
    thread = threading.Thread(target=ends[0].send, args=[message], daemon=True)
    thread.start()
    assert ends[1].poll(30), "nothing came"
    received = ends[1].recv()
    thread.join()
    return received


DTYPES = (
    npst.scalar_dtypes()
    | npst.unicode_string_dtypes(max_len=9)
    | npst.byte_string_dtypes(max_len=9)
    | npst.array_dtypes(max_size=3)
    | npst.complex_number_dtypes()
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Of any dtype, size (also none), number of dimensions (also none) and order; also with gaps, also read-only."""
    dtype = draw(DTYPES)
    rank = draw(st.integers(0, 3))
    most = draw(st.sampled_from([3, 3, 3, 40]))
    shape = tuple(draw(st.lists(st.integers(0, most), min_size=rank, max_size=rank)))
    count = int(np.prod(shape)) * 8 * max(1, dtype.itemsize)
    noise = np.random.default_rng(draw(st.integers(0, 99))).bytes(count)
    array = np.frombuffer(noise, dtype, int(np.prod(shape)) * 8) if dtype.itemsize else np.zeros(count, dtype)
    array = array.copy()[: int(np.prod(shape)) * 2 : draw(st.sampled_from([1, 2]))][: int(np.prod(shape))]
    array = array.reshape(shape, order=draw(st.sampled_from(["C", "F"])))
    if rank and draw(st.booleans()):
        array = array.swapaxes(0, -1)[:: draw(st.sampled_from([1, -1]))]
    array.flags.writeable = draw(st.booleans())
    return array


LEAVES = arrays() | st.text(max_size=5) | st.integers() | st.none() | st.binary(max_size=20)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(BatchDone, st.integers(), st.lists(inner, max_size=3), st.just(0.5))
        | st.builds(GroupAnswer, st.integers(), st.just([1]), st.dictionaries(st.text(max_size=3), inner, max_size=3))
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("limit", [64 * MB, 0], ids=["blocks", "streamed"])
@given(messages=st.lists(NESTED, min_size=1, max_size=4))
@settings(max_examples=60)
def test_everything_comes_as_it_was_sent(limit: int, messages: list[Any]) -> None:
    ours, theirs = Channel.pair(limit)
    with ours, theirs:
        received = [cross((ours, theirs), message) for message in messages]
    assert all(map(same, messages, received))  # also after later messages, and after both ends are closed


@pytest.mark.parametrize("size", [8, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("writeable", [True, False])
def test_order_and_writability_are_kept(ends: Ends, size: int, order: Any, writeable: bool) -> None:
    sent = np.asarray(np.arange(size, dtype=np.float32).reshape(4, -1), order=order)
    sent.flags.writeable = writeable
    received = cross(ends, sent)
    assert (received.strides, received.flags.writeable) == (sent.strides, writeable)
    assert received.ctypes.data % 64 == 0 or size < LARGE


def test_arrays_of_objects_and_one_array_twice(ends: Ends) -> None:
    text = np.array([["a", None], [b"c", "x" * 2 * LARGE]], dtype=object)
    image = np.ones((3, 99, 99), np.float32)
    received = cross(ends, {"text": text, "images": [image, image]})
    assert same(text, received["text"])
    assert received["images"][0] is received["images"][1]


@pytest.mark.parametrize("n_bytes", [1, LARGE - 1, LARGE, 65_000, 65_536, 70_000, MB, 5 * MB])
@pytest.mark.parametrize("limit", [64 * MB, 0], ids=["blocks", "streamed"])
def test_sizes_around_every_edge(n_bytes: int, limit: int) -> None:
    ours, theirs = Channel.pair(limit)
    with ours, theirs:
        data = np.random.default_rng(n_bytes).bytes(n_bytes)
        for message in (data, np.frombuffer(data, np.uint8), [np.frombuffer(data, np.uint8), "x", data]):
            assert same(message, cross((ours, theirs), message))


def test_a_pickle_as_long_as_a_packet(ends: Ends) -> None:
    for n_bytes in range(65_536 - 100, 65_536 + 2):
        message = bytes(n_bytes)
        assert cross(ends, message) == message
    assert ends[0].block_bytes == MB  # the longest needed one


def test_sender_may_change_what_it_sent(ends: Ends) -> None:
    sent = {"small": np.zeros(4), "large": np.zeros(LARGE)}
    ends[0].send(sent)
    for array in sent.values():
        array += 1
    assert not any(array.any() for array in ends[1].recv().values())


def test_what_is_written_into_a_received_array_is_seen_by_nobody(ends: Ends) -> None:
    received = [cross(ends, np.zeros(LARGE)) for _ in range(3)]
    for number, array in enumerate(received):
        array += number
    assert [set(array) for array in received] == [{0.0}, {1.0}, {2.0}]
    assert not cross(ends, np.zeros(LARGE)).any()


@pytest.mark.parametrize(
    "part",
    [lambda a: a, lambda a: a[5:7], lambda a: a.reshape(2, -1).T[::3], lambda a: a.view(np.int16), memoryview],
    ids=["whole", "slice", "strided", "cast", "memoryview"],
)
def test_any_view_keeps_its_block(ends: Ends, part: Any) -> None:
    kept = part(cross(ends, np.full(LARGE, 7, np.int32)))
    gc.collect()
    before = bytes(kept)
    for _ in range(5):
        cross(ends, np.full(LARGE, 8, np.int32))
    assert bytes(kept) == before
    assert ends[0].block_bytes == 2 * MB  # one kept, one in turns


def test_a_torch_tensor_keeps_its_block(ends: Ends) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(cross(ends, np.full(LARGE, 7, np.int32)))[3:]
    cross(ends, np.full(LARGE, 8, np.int32))
    assert set(tensor.tolist()) == {7}


def test_a_row_keeps_the_message_that_it_came_in(ends: Ends) -> None:
    rows = cross(ends, [np.full(LARGE, n, np.int32) for n in range(3)])
    last = rows.pop()
    rows.clear()
    again = cross(ends, [np.full(LARGE, 9, np.int32) for _ in range(3)])
    assert set(last) == {2}
    assert ends[0].block_bytes == 2 * MB
    del last, again
    cross(ends, np.zeros(LARGE))
    assert ends[0].block_bytes == 2 * MB


@pytest.mark.parametrize(("least", "blocks"), [(3 * MB, [4]), (LARGE, [1, 2, 4])], ids=["one size", "many"])
def test_blocks_do_not_grow_under_a_steady_load(ends: Ends, least: int, blocks: list[int]) -> None:
    """Four messages at a time, one of them just coming: at most four blocks of each size."""
    random = np.random.default_rng(0)
    under_way: list[Any] = []
    for _ in range(300):
        under_way.append(cross(ends, [np.zeros(int(random.integers(least, 3 * MB + 1)), np.uint8), "small"]))
        under_way = under_way[-3:]
    assert ends[0].block_bytes <= 4 * sum(blocks) * MB
    assert ends[0].streamed == 0


def test_limit_is_kept_and_what_is_past_it_comes_all_the_same() -> None:
    ours, theirs = Channel.pair(limit=4 * MB)
    with ours, theirs:
        kept = [cross((ours, theirs), np.full(MB // 2, n, np.uint8)) for n in range(8)]
        assert [set(array) for array in kept] == [{n} for n in range(8)]
        assert (ours.block_bytes, ours.streamed) == (4 * MB, 4)
        kept.clear()
        assert same(np.ones(MB), cross((ours, theirs), np.ones(MB)))  # larger than all of them
        assert (ours.block_bytes, ours.streamed) == (4 * MB, 5)


def test_free_blocks_that_are_too_small_make_room_at_both_ends() -> None:
    ours, theirs = Channel.pair(limit=3 * MB)
    with ours, theirs:
        before = maps()
        small = [cross((ours, theirs), np.zeros(MB // 2, np.uint8)) for _ in range(3)]
        held = small.pop()
        small.clear()
        large = cross((ours, theirs), np.ones(MB + 1, np.uint8))
        assert (ours.block_bytes, ours.streamed) == (3 * MB, 0)
        assert maps() - before == 4  # two blocks, at two ends
        assert not held.any()
        assert large.all()


def test_without_file_descriptors_messages_are_streamed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(shared_blocks.os, "memfd_create", refuse)
    assert cross(ends, np.ones(LARGE)).all()
    assert ends[0].streamed == 1


def test_many_messages_under_way_in_both_directions(ends: Ends) -> None:
    """One thread sends and one receives on each end; arrays are dropped in a fifth thread."""
    counts: dict[int, int] = {}
    dropped: list[Any] = []

    def send(end: Channel, seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in range(200):
            size = int(random.choice([1, 50, LARGE, 40 * LARGE]))
            end.send((number, np.full(size, number, np.int32), [np.full(3, number)] * 2))

    def receive(end: Channel, seed: int) -> None:
        kept: list[Any] = []
        for number in range(200):
            kept.append(end.recv())
            assert kept[-1][0] == number
            if number % 7 == 0:
                assert all((array == n).all() and (few[0] == n).all() for n, array, few in kept)
                dropped.append(kept[1:])
                del kept[1:]
        counts[seed] = number + 1

    threads = [threading.Thread(target=work, args=(end, i)) for i, end in enumerate(ends) for work in (send, receive)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        dropped.clear()
        threads[0].join(0.001)
    assert counts == {0: 200, 1: 200}


@dataclass
class Hostile:
    """Pickling it fails, or unpickling it does."""

    at_send: bool

    def __reduce__(self) -> Any:
        if self.at_send:
            raise pickle.PicklingError("not this one")
        return int, ("not a number",)


def test_what_cannot_be_pickled_or_unpickled_harms_nothing_else(ends: Ends) -> None:
    for _ in range(3):
        with pytest.raises(pickle.PicklingError, match="not this one"):
            ends[0].send([np.zeros(LARGE), Hostile(at_send=True)])
        ends[0].send([np.zeros(LARGE), Hostile(at_send=False)])
        with pytest.raises(ValueError, match="not a number"):
            ends[1].recv()
        assert cross(ends, np.ones(LARGE)).all()
    gc.collect()
    assert ends[0].block_bytes <= 2 * MB


def test_end_of_the_other_side() -> None:
    ours, theirs = Channel.pair()
    kept = cross((theirs, ours), np.full(LARGE, 5))
    theirs.send("last words")
    ours.send("never read")
    theirs.close()
    assert ours.poll(None)
    assert ours.recv() == "last words"
    for _ in range(2):
        with pytest.raises(EOFError, match="the other end of the channel is closed"):
            ours.recv()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            ours.send("anyone?")
    ours.close()
    for call in (ours.recv, ours.fileno, ours.poll, lambda: ours.send(1)):
        with pytest.raises(OSError):  # noqa: PT011 - the system's own words
            call()
    assert (kept == 5).all()


def test_finished_end_still_receives(ends: Ends) -> None:
    ends[0].send("a question")
    ends[0].finish()
    with pytest.raises(OSError, match="Broken pipe"):
        ends[0].send("another")
    assert ends[1].recv() == "a question"
    with pytest.raises(EOFError):
        ends[1].recv()
    ends[1].send(np.ones(LARGE))
    assert ends[0].recv().all()


def test_receiver_that_goes_in_the_middle_of_a_message() -> None:
    ours, theirs = Channel.pair(limit=0)

    def send() -> None:
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            theirs.send(np.zeros(9 * MB))
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    assert ours.poll(10)  # the head is here; the rest is more than the socket holds
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    assert theirs.streamed == 1


def test_poll(ends: Ends) -> None:
    assert not ends[0].poll()
    assert not ends[0].poll(0.01)
    ends[1].send(1)
    assert ends[0].poll(10)
    assert ends[0].poll()
    ends[0].recv()
    assert not ends[0].poll(-1)


def maps() -> int:
    """Blocks that this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:fmplex")


def test_nothing_is_left_of_a_hundred_pairs() -> None:
    gc.collect()
    fds, mapped = len(os.listdir("/proc/self/fd")), maps()
    for _ in range(100):
        ours, theirs = Channel.pair()
        cross((ours, theirs), np.zeros(LARGE))
        kept = cross((theirs, ours), np.ones(LARGE))
        ours.send(np.zeros(LARGE))  # never received
        ours.close()
        theirs.close()
    assert maps() - mapped == 1  # of the last array
    assert kept.all()
    del kept
    assert (len(os.listdir("/proc/self/fd")), maps()) == (fds, mapped)


ECHO = """
import sys
from fmplex_backend.transport import Channel
with Channel.adopt(int(sys.argv[1]), int(sys.argv[2])) as channel:
    try:
        while True:
            message = channel.recv()
            repr(message)  # follows every reference in it
            channel.send(message)
    except EOFError:
        print("ended in order")
"""


@pytest.fixture
def limit() -> int:
    """Of the blocks that the child makes."""
    return 256 * MB


@pytest.fixture
def child(limit: int) -> Iterator[tuple[Channel, subprocess.Popen[str]]]:
    """A process that sends back what it gets."""
    ours, theirs = Channel.pair()
    with theirs:
        command = [sys.executable, "-c", ECHO, str(theirs.fileno()), str(limit)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)
    with ours, process:
        yield ours, process
        process.kill()


def test_another_process(child: tuple[Channel, subprocess.Popen[str]]) -> None:
    channel, process = child
    tokens = RunBatch(1, [1, 2], [{"input_ids": np.arange(n, dtype=np.int32)} for n in (3, 3000)])
    images = RunBatch(2, [1] * 9, [{"pixel_values": np.full((3, 224, 224), n, np.float32)} for n in range(9)])
    objects = [np.array([["a", None], [b"c", {"d": np.arange(2 * LARGE)}]], dtype=object), np.zeros(3, "V0")]
    for _ in range(3):
        for message in (tokens, images, "x" * 10 * MB, objects):
            channel.send(message)
            assert channel.poll(60)
            assert same(message, channel.recv())
    assert channel.block_bytes <= 3 * 16 * MB
    channel.close()
    assert process.stdout is not None
    assert process.stdout.read() == "ended in order\n"


def test_arrays_outlive_the_process_that_sent_them(child: tuple[Channel, subprocess.Popen[str]]) -> None:
    channel, process = child
    before = maps()
    channel.send([np.full(LARGE, n) for n in range(4)])
    received = channel.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(EOFError):
        channel.recv()
    channel.close()
    assert [set(array) for array in received] == [{n} for n in range(4)]
    received.clear()
    wait_for(lambda: maps() == before, "the blocks to go")


@pytest.mark.parametrize("limit", [0])
def test_sender_that_dies_in_the_middle_of_a_message(child: tuple[Channel, subprocess.Popen[str]]) -> None:
    channel, process = child
    channel.send(np.zeros(9 * MB))
    assert channel.poll(60)  # the head is here; the rest is more than the socket holds
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(EOFError):
        channel.recv()
