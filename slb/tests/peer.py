"""The machines at both ends of the live tests.

serve NAME: says its name and its client's address, by lines, by HTTP and by datagrams; and by HTTP
    as many bytes as are asked for.
stay ADDRESS PORT SECONDS: asks over one connection all the time, and prints who answered.
ask ADDRESS PORT: asks by a datagram, and prints who answered.
requests ADDRESS TCP UDP COUNT: asks COUNT times, by a connection of its own and by a datagram in turn,
    and prints how many requests failed. A datagram is sent again after a second, up to three times.
files DIRECTORY PORT: a directory's files by HTTP, over both families, to many clients at once.
cable NAME SPACE OTHER: two tap devices, one here and one in another network namespace, and what is
    sent to one comes out of the other.
"""
import ctypes
import fcntl
import http.server
import os
import select
import socket
import struct
import sys
import threading
import time


def both(kind):
    """A socket of both families at port 8080."""
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", 8080))
    return server


def said(name, peer):
    return f"{name} {peer[0].removeprefix('::ffff:')}\n".encode()


def answer(connection, peer, name):
    stream = connection.makefile("rwb")
    text = said(name, peer)
    for line in stream:
        if line.startswith(b"GET "):
            size = line.split()[1].strip(b"/")
            if size:
                text = bytes(i * 31 >> 3 & 255 for i in range(997)) * (int(size) // 997 + 1)
                text = text[: int(size)]
            stream.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            stream.flush()
            break
        stream.write(text)
        stream.flush()
    connection.close()


def listen(name):
    server = both(socket.SOCK_STREAM)
    server.listen(64)
    while True:
        connection, peer = server.accept()
        threading.Thread(target=answer, args=(connection, peer, name), daemon=True).start()


def serve(name):
    threading.Thread(target=listen, args=(name,), daemon=True).start()
    datagrams = both(socket.SOCK_DGRAM)
    while True:
        _, peer = datagrams.recvfrom(2000)
        datagrams.sendto(said(name, peer), peer)


def stay(address, port, seconds):
    connection = socket.create_connection((address, int(port)), timeout=5)
    stream = connection.makefile("rwb")
    end = time.time() + float(seconds)
    names = set()
    while time.time() < end:
        stream.write(b"who\n")
        stream.flush()
        names.add(stream.readline().decode().split()[0])
        time.sleep(0.02)
    print(*names)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ask(address, port):
    question = socket.socket(family(address), socket.SOCK_DGRAM)
    question.settimeout(5)
    question.sendto(b"who\n", (address, int(port)))
    print(question.recvfrom(2000)[0].decode().strip())


def request(address, tcp, udp, number):
    if number % 2:
        with socket.create_connection((address, int(tcp)), timeout=5) as connection:
            stream = connection.makefile("rwb")
            stream.write(b"who\n")
            stream.flush()
            return bool(stream.readline())
    with socket.socket(family(address), socket.SOCK_DGRAM) as question:
        question.settimeout(1)
        for _ in range(4):
            question.sendto(b"who\n", (address, int(udp)))
            try:
                return bool(question.recv(2000))
            except TimeoutError:
                pass
    return False


def requests(address, tcp, udp, count):
    failed = 0
    for number in range(int(count)):
        try:
            failed += not request(address, tcp, udp, number)
        except OSError:
            failed += 1
        time.sleep(0.02)
    print(failed)


def files(directory, port):
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, *_):
            pass  # its client is gone

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    os.chdir(directory)
    Server(("::", int(port)), Handler).serve_forever()


def tap(name):
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF
    return device


def cable(name, space, other):
    here = tap(name)
    with open(f"/var/run/netns/{space}") as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    there = tap(other)
    while True:
        for device in select.select([here, there], [], [])[0]:
            frame = os.read(device, 65536)
            try:
                os.write(there if device == here else here, frame)
            except OSError:
                pass  # it is down


roles = {"serve": serve, "stay": stay, "ask": ask, "requests": requests, "cable": cable, "files": files}
roles[sys.argv[1]](*sys.argv[2:])
