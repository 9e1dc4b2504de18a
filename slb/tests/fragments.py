"""Datagrams and pings that are longer than the path's MTU, at both ends of the fragment tests.

serve: sends UDP datagrams to port 8080 back, in both families; one whose first byte is "r" with the
    last fragment first.
ask ADDRESS PORT...: sends an echo request with the last fragment first, and to each port datagrams
    whose fragments, and whose answer's, are in order and reversed; fails unless every answer has
    the same data.
"""
import random
import select
import socket
import struct
import sys

SIZE = 4000
# Of data in a fragment: a multiple of eight that leaves room for both families' headers.
PART = 1448
TIMEOUT_SECONDS = 5


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def own_address(address):
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return probe.getsockname()[0]


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source, destination, protocol, length):
    pack = lambda address: socket.inet_pton(family_of(address), address)
    return pack(source) + pack(destination) + struct.pack("!II", length, protocol)


def send_reversed(source, destination, protocol, message):
    """Sends the fragments of an IP packet's payload, the last one first."""
    family = family_of(destination)
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    identification = random.randrange(1, 0x10000)
    raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for offset in reversed(range(0, len(message), PART)):
        part = message[offset : offset + PART]
        has_more = offset + PART < len(message)
        if family == socket.AF_INET:
            header = struct.pack(
                "!BBHHHBBH", 0x45, 0, 20 + len(part), identification,
                offset // 8 | has_more << 13, 64, protocol, 0,
            ) + addresses  # fmt: skip
        else:
            header = struct.pack("!IHBB", 6 << 28, 8 + len(part), 44, 64) + addresses
            header += struct.pack("!BBHI", protocol, 0, offset | has_more, identification)
        raw.sendto(header + part, (destination, 0))


def send_datagram(source, own_port, destination, port, data):
    length = 8 + len(data)
    header = struct.pack("!HHHH", own_port, port, length, 0)
    pseudo = pseudo_header(source, destination, socket.IPPROTO_UDP, length)
    header = header[:6] + struct.pack("!H", checksum(pseudo + header + data) or 0xFFFF)
    send_reversed(source, destination, socket.IPPROTO_UDP, header + data)


def serve():
    servers = []
    for family in (socket.AF_INET, socket.AF_INET6):
        server = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("", 8080))
        servers.append(server)
    while True:
        for server in select.select(servers, [], [])[0]:
            data, peer = server.recvfrom(65535)
            if data[:1] == b"r":
                send_datagram(own_address(peer[0]), 8080, peer[0], peer[1], data)
            else:
                server.sendto(data, peer)


def pattern(first):
    """Data whose first byte says how the answer is sent: by the kernel (k), or reversed (r)."""
    return first + bytes(i * 7 & 255 for i in range(1, SIZE))


def exchange(address, port, order, answer):
    data = pattern(answer)
    client = socket.socket(family_of(address), socket.SOCK_DGRAM)
    client.settimeout(TIMEOUT_SECONDS)
    client.connect((address, port))
    if order == b"r":
        source, own_port, *_ = client.getsockname()
        send_datagram(source, own_port, address, port, data)
    else:
        client.send(data)
    assert client.recv(65535) == data, "another answer"


def ping(address):
    identifier = random.randrange(0x10000)
    source, data = own_address(address), pattern(b"p")
    if family_of(address) == socket.AF_INET:
        request, reply, protocol, pseudo = 8, 0, socket.IPPROTO_ICMP, b""
    else:
        request, reply, protocol = 128, 129, socket.IPPROTO_ICMPV6
        pseudo = pseudo_header(source, address, protocol, 8 + SIZE)
    header = struct.pack("!BBHHH", request, 0, 0, identifier, 1)
    header = header[:2] + struct.pack("!H", checksum(pseudo + header + data)) + header[4:]
    replies = socket.socket(family_of(address), socket.SOCK_RAW, protocol)
    replies.settimeout(TIMEOUT_SECONDS)
    send_reversed(source, address, protocol, header + data)
    while True:
        message, (sender, *_) = replies.recvfrom(65535)
        if not pseudo:
            # A raw IPv4 socket gets the IP header too.
            message = message[(message[0] & 15) * 4 :]
        if message[0] == reply and struct.unpack("!H", message[4:6])[0] == identifier:
            assert sender == address, sender
            assert message[8:] == data, "another answer"
            break


def ask(address, *ports):
    print("echo request", flush=True)
    ping(address)
    for port in map(int, ports):
        for order in (b"k", b"r"):
            for answer in (b"k", b"r"):
                print("datagram", port, order, answer, flush=True)
                exchange(address, port, order, answer)


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
