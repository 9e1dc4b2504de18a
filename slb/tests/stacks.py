"""TCP by two real stacks, one step after another: what a proxy between them has to follow.

serve: a server on port 8080 of either family. A connection's lines are its orders:
    echo WORD: sends it back; close: closes first; keep: does not close after the client;
    vanish: forgets the connection without a packet; pause SECONDS: waits so long once the client
    has sent its FIN, and sends "late".
play ADDRESS PORT SCENARIO: the client's part, from port 40000. Prints a word when a step is done,
    and goes on when a line comes in.
"""
import os
import socket
import struct
import sys
import threading
import time

# Of linux/tcp.h.
REPAIR, REPAIR_QUEUE, QUEUE_SEQ = 19, 20, 21
SEND = 2
OWN_PORT = 40000


def repair(connection, on):
    connection.setsockopt(socket.IPPROTO_TCP, REPAIR, int(on))
    if not on:  # which forgets this
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def number(connection, queue):
    """The next sequence number of a queue, unsigned."""
    connection.setsockopt(socket.IPPROTO_TCP, REPAIR_QUEUE, queue)
    return connection.getsockopt(socket.IPPROTO_TCP, QUEUE_SEQ) & 0xFFFFFFFF


def vanish(connection):
    """Closes without a packet, as a machine does that loses its power."""
    repair(connection, True)
    connection.close()


def obey(connection):
    stream = connection.makefile("rb")
    for line in stream:
        order, *words = line.decode().split()
        if order == "echo":
            connection.sendall(line)
        elif order == "close":
            connection.shutdown(socket.SHUT_WR)
        elif order == "vanish":
            connection.sendall(b"vanished\n")
            time.sleep(0.3)
            stream.close()
            vanish(connection)
            return
        elif order == "keep":
            stream.read()
            time.sleep(30)
        elif order == "pause":
            assert stream.read() == b""
            time.sleep(float(words[0]))
            connection.sendall(b"late\n")
    stream.close()
    connection.close()


def quietly(connection):
    try:
        obey(connection)
    except OSError:
        pass  # reset


def serve():
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", 8080))
    server.listen(64)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=quietly, args=(connection,), daemon=True).start()


def call(address, port, first=None):
    """A connection from our one port, whose SYN has the number `first`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("", OWN_PORT))
    if first is not None:
        repair(connection, True)
        connection.setsockopt(socket.IPPROTO_TCP, REPAIR_QUEUE, SEND)
        connection.setsockopt(socket.IPPROTO_TCP, QUEUE_SEQ, struct.pack("I", first))
        repair(connection, False)
    connection.settimeout(15)
    connection.connect((address, port))
    return connection


def ask(connection, line):
    connection.sendall(line.encode() + b"\n")
    return connection.recv(100).decode().strip()


def step(word):
    print(word, flush=True)
    sys.stdin.readline()


def reset(connection, beyond):
    """Sends a RST from the outside of a connection, `beyond` what its receiver expects."""
    repair(connection, True)
    sequence = number(connection, SEND)
    repair(connection, False)
    (own, own_port, *_), (other, port, *_) = connection.getsockname(), connection.getpeername()
    header = struct.pack(
        "!HHIIBBHHH", own_port, port, (sequence + beyond) & 0xFFFFFFFF, 0, 0x50, 4, 0, 0, 0
    )
    family = connection.family
    pack = lambda address: socket.inet_pton(family, address)
    pseudo = pack(own) + pack(other) + struct.pack("!II", len(header), 6)
    words = struct.unpack(f"!{len(pseudo + header) // 2}H", pseudo + header)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]
    raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.sendto(header, (other, 0))


OLD, LOWER, HIGHER = 3_000_000_000, 1_000_000_000, 3_500_000_000


def reuse(address, port, end, first):
    old = call(address, port, OLD)
    assert ask(old, "echo one") == "echo one"
    if end == "closed":  # by the server first
        old.sendall(b"close\n")
        assert old.recv(10) == b""
        old.close()
        time.sleep(0.2)
    elif end == "half-closed":
        old.sendall(b"keep\n")
        old.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        vanish(old)
    elif end == "forgotten-by-client":
        vanish(old)
    elif end == "forgotten-by-both":
        assert ask(old, "vanish") == "vanished"
        time.sleep(0.6)
        vanish(old)
    step("old")
    new = call(address, port, first)
    assert ask(new, "echo two") == "echo two"
    step("new")
    assert ask(new, "echo three") == "echo three"
    new.sendall(b"close\n")
    assert new.recv(10) == b""
    new.close()


def forged(address, port):
    connection = call(address, port)
    assert ask(connection, "echo one") == "echo one"
    for beyond in [1, 1000, 20000]:
        reset(connection, beyond)
        time.sleep(0.2)
        assert ask(connection, "echo two") == "echo two"
    step("forged")
    reset(connection, 0)
    time.sleep(0.2)
    step("exact")


def half(address, port, seconds):
    connection = call(address, port)
    connection.sendall(f"pause {seconds}\n".encode())
    connection.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    step("half")
    assert connection.recv(100) == b"late\n"
    assert connection.recv(100) == b""
    step("whole")


def play(address, port, scenario, *rest):
    port = int(port)
    if scenario == "reuse":
        reuse(address, port, rest[0], {"lower": LOWER, "higher": HIGHER}[rest[1]])
    elif scenario == "forged":
        forged(address, port)
    elif scenario == "half":
        half(address, port, *rest)


{"serve": serve, "play": play}[sys.argv[1]](*sys.argv[2:])
