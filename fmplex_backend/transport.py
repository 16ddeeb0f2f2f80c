"""How messages travel between host and engine: small ones through a socket, large arrays through shared memory.

The rules:

1. A message is one packet of a ``SOCK_SEQPACKET`` socket: a head, and the message pickled. Arrays of `LARGE` bytes or
   more stay out of the pickle; they, or a pickle that is too long for a packet, lie in a block of shared memory.
2. A block belongs to the end that sends; only that end puts messages into it, one at a time. A new one's file
   descriptor goes with the first message that lies in it.
3. What `Channel.recv` returns refers to the block: nothing is copied. The block is given back when the last array of
   the message has been collected as garbage: in any thread, at any time, even long after the channel was closed.
   Until then nobody writes into it, so a message never changes under its reader.
4. Nothing waits for a block. Where none is free, another is made; at the limit, the message follows its packet through
   the socket instead, in pieces: slower, and otherwise the same.
5. On each end one thread may send while another receives. All that the two have in common is the socket.

Only for a process and the child that it started: what comes in is unpickled.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.shared_blocks import ALIGNED, HeldBlocks, MadeBlocks

LARGE = 4 << 10
"""Bytes from which an array goes into a block. With 64 arrays that is faster from 3 KiB, with a single one from 50;
see ``python -m fmplex_tools.bench.transport --threshold``."""

BLOCKS_LIMIT = 1 << 30
"""Bytes that the blocks of one direction may take together."""

_PACKET = 64 << 10
_IN_PACKET, _IN_BLOCK, _FOLLOWS = range(3)
HEAD = struct.Struct("<BxxxIQQQ")
"""Where the message lies; its block's number; that block's size if it is new, else 0; the message's size and parts."""
_IN_PACKET_HEAD = HEAD.pack(_IN_PACKET, 0, 0, 0, 0)


class Channel:
    """One end of a connection between two processes; see the module for its rules.

    An array arrives with the dtype, shape, order and writability that it was sent with, and is the receiver's own:
    nobody else sees what is written into it. Two views of one array arrive as two arrays.
    """

    def __init__(self, sock: socket.socket, limit: int = BLOCKS_LIMIT) -> None:
        """Take over ``sock``, one end of a pair. ``limit``: bytes of all blocks that this end makes."""
        self._socket = sock
        self._made = MadeBlocks(limit)
        self._held = HeldBlocks()
        self._packet = memoryview(bytearray(_PACKET))
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.streamed = 0
        """Messages that had to go through the socket though they are large (rule 4)."""

    @classmethod
    def pair(cls, limit: int = BLOCKS_LIMIT) -> tuple[Channel, Channel]:
        """Two connected ends: ours, and one for a child that inherits its `fileno` and calls `adopt`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours, limit), cls(theirs, limit)

    @classmethod
    def adopt(cls, fd: int, limit: int = BLOCKS_LIMIT) -> Channel:
        """The end that the parent process made and passed on as ``fd``. Raises OSError if that is no socket."""
        return cls(socket.socket(fileno=fd), limit)

    @property
    def block_bytes(self) -> int:
        """Bytes of the blocks that this end has made, free or not."""
        return self._made.n_bytes

    def fileno(self) -> int:
        """The socket's file descriptor, readable when `recv` has something to do. Raises OSError when closed."""
        if (fd := self._socket.fileno()) < 0:
            raise OSError("the channel is closed")
        return fd

    def send(self, message: object) -> None:
        """Send whatever can be pickled; it may be changed again as soon as this returns.

        Raises OSError when one of the ends is closed. What pickling raises is passed on, and nothing was sent.
        """
        large: list[pickle.PickleBuffer] = []
        packet = io.BytesIO()
        packet.write(_IN_PACKET_HEAD)
        _Pickler(packet, 5, buffer_callback=large.append).dump(message)
        if not large and packet.tell() <= _PACKET:
            self._socket.send(packet.getbuffer(), socket.MSG_NOSIGNAL)
            return
        parts = [packet.getbuffer()[HEAD.size :], *(buffer.raw() for buffer in large)]
        size, starts = _layout([len(part) for part in parts])
        taken = self._made.take(size)
        if taken is None:
            self._stream(size, starts, parts)
            return
        try:
            _fill(np.frombuffer(taken.memory, np.uint8, size, ALIGNED), starts, parts)
            new = 0 if taken.fd is None else len(taken.memory)
            fds = [] if taken.fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", taken.fd))]
            head = HEAD.pack(_IN_BLOCK, taken.number, new, size, len(parts))
            self._socket.sendmsg([head], fds, socket.MSG_NOSIGNAL)
        finally:
            if taken.fd is not None:
                os.close(taken.fd)

    def _stream(self, size: int, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
        self.streamed += 1
        whole: Array = np.empty(size, np.uint8)
        _fill(whole, starts, parts)
        self._socket.send(HEAD.pack(_FOLLOWS, 0, 0, size, len(parts)), socket.MSG_NOSIGNAL)
        for start in range(0, size, _PACKET):
            self._socket.send(whole[start : start + _PACKET].data, socket.MSG_NOSIGNAL)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Wait at most ``timeout`` seconds, or for ever if None, until `recv` has something to do; whether it has."""
        self.fileno()
        return bool(self._poll.poll(None if timeout is None else max(0.0, timeout) * 1e3))

    def recv(self) -> Any:
        """Wait for a message. Raises EOFError when the other end is closed, OSError when this one is.

        What unpickling raises is passed on; messages that come later are not affected.
        """
        count, fds = self._receive(self._packet)
        where, number, new, size, parts = HEAD.unpack_from(self._packet)
        if where == _IN_PACKET:
            return pickle.loads(self._packet[HEAD.size : count])
        if where == _FOLLOWS:
            return _load(self._followed(size), parts)
        if new:
            if not fds:
                raise OSError(f"block {number} came without its file descriptor: is the limit of open files too low?")
            self._held.add(number, new, fds[0])
        return _load(self._held.lend(number, size), parts)

    def _receive(self, into: memoryview) -> tuple[int, list[int]]:
        """Put one packet ``into``; how many bytes it has, and the file descriptors that came with it."""
        while True:
            try:
                space = socket.CMSG_SPACE(4)
                count, ancillary, _, _ = self._socket.recvmsg_into([into], space, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                continue  # told once, if the other end did not read all before it closed; then comes what it sent
            if not count:
                raise EOFError("the other end of the channel is closed")
            return count, [struct.unpack("i", data)[0] for _, _, data in ancillary if len(data) == 4]

    def _followed(self, size: int) -> memoryview:
        whole = np.empty(size, np.uint8).data
        filled = 0
        while filled < size:
            filled += self._receive(whole[filled:])[0]
        return whole

    def finish(self) -> None:
        """Send nothing more: the other end finds the channel at its end. Receiving goes on."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end. Arrays that were received stay valid; what was not received yet is lost."""
        self._socket.close()
        self._made.forget()
        self._held.forget()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reduce(array: Array) -> Any:
    """How an array is pickled: smaller ones in half the time that numpy takes, large ones as buffers."""
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce_ex__(4)
    order: Literal["C", "F"] = "F" if array.flags.fnc else "C"
    data: Any
    if array.nbytes >= LARGE:
        data = pickle.PickleBuffer(array.ravel(order).view(np.uint8).data)
    elif array.flags.writeable:
        data = bytearray(array.tobytes(order))
    else:
        data = array.tobytes(order)
    name = dtype.char if dtype.kind in "biufc" and dtype.isnative else dtype  # a single byte in the pickle
    return np.ndarray, (array.shape, name, data) if order == "C" else (array.shape, name, data, 0, None, order)


class _Pickler(pickle.Pickler):
    dispatch_table = copyreg.dispatch_table | {np.ndarray: _reduce}


def _layout(lengths: Sequence[int]) -> tuple[int, list[int]]:
    """Bytes of a message of such parts, and where each starts: aligned, behind a table of the lengths."""
    end, starts = 8 * len(lengths), []
    for length in lengths:
        starts.append(-(-end // ALIGNED) * ALIGNED)
        end = starts[-1] + length
    return end, starts


def _fill(whole: Array, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
    struct.pack_into(f"<{len(parts)}Q", whole.data, 0, *map(len, parts))
    for start, part in zip(starts, parts, strict=True):
        # By numpy, which copies without the GIL: other threads go on.
        np.copyto(whole[start : start + len(part)], np.ndarray(len(part), np.uint8, part))


def _load(whole: memoryview, parts: int) -> Any:
    lengths = struct.unpack_from(f"<{parts}Q", whole)
    _, starts = _layout(lengths)
    pickled, *large = (whole[start : start + length] for start, length in zip(starts, lengths, strict=True))
    return pickle.loads(pickled, buffers=large)
