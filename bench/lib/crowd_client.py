#!/usr/bin/env python3
"""Thousands of HTTP/1.1 clients in one process, each with a connection of its own.

Reads one JSON object a line from stdin and answers each with one on stdout. The first is the set-up:
  {"host", "port", "tls": bool, "first_source": n, "count": n, "path", "headers": [...]}
Then, in any order:
  {"do": "connect", "under_way": n}   connects all, at most n at a time, and sends a request on each
  {"do": "collect", "timeout": s}     waits until each has a complete answer
  {"do": "send", "headers": [...]}    sends the next request on each
  {"do": "leave"}                     closes all
Times are those of CLOCK_MONOTONIC, which all processes of a machine share; bytes are counted by tenths of
its seconds. Connections come from 127.1.x.y, each address for 10 000 of them, because an address has about
28 000 ports.
"""
import gc, json, select, socket, ssl, sys, time

PER_SOURCE = 10_000
IP_BIND_ADDRESS_NO_PORT = 24
BUFFER = memoryview(bytearray(1 << 18))
SCAN = 4096


class Client:
    """One connection; `missing` counts the bytes of its answer that have not arrived, -1 before its head."""

    __slots__ = ("stream", "connected", "missing", "head", "status", "body", "done")

    def __init__(self, stream):
        self.stream, self.connected = stream, False
        self.expect_answer()

    def expect_answer(self):
        self.missing, self.head, self.status, self.body, self.done = -1, b"", 0, 0, 0.0

    def take(self, data):
        """Takes received bytes. True once the answer is complete."""
        if self.missing < 0:
            head, end = self.head + bytes(data[:SCAN]), -1
            end = head.find(b"\r\n\r\n")
            if end < 0:
                self.head = head
                return False
            self.status, self.body = int(head[9:12]), content_length(head[:end])
            self.missing = self.body + end + 4 - len(self.head) - len(data)
            self.head = b""
        else:
            self.missing -= len(data)
        return self.missing <= 0


def content_length(head):
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    return int(head[at + 17:].split(b"\r\n", 1)[0])


class Crowd:
    def __init__(self, setup):
        self.setup, self.clients = setup, {}
        self.address = (setup["host"], setup["port"])
        self.request = self.render(setup["headers"])
        self.epoll = select.epoll()
        self.context = None
        if setup["tls"]:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3

    def render(self, headers):
        host = f"Host: {self.address[0]}:{self.address[1]}"
        return "\r\n".join([f"GET {self.setup['path']} HTTP/1.1", host, *headers, "", ""]).encode()

    def open(self, number):
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        source = self.setup["first_source"] + number // PER_SOURCE
        plain.bind((f"127.1.{source // 200}.{source % 200 + 1}", 0))
        plain.connect_ex(self.address)
        self.clients[plain.fileno()] = Client(plain)
        self.epoll.register(plain.fileno(), select.EPOLLOUT)

    def connect(self, under_way):
        """Connects all, and returns when each has sent its request."""
        began, opened, sent, count = time.monotonic(), 0, 0, self.setup["count"]
        self.early = []
        while sent < count:
            while opened < count and opened - sent < under_way:
                self.open(opened)
                opened += 1
            for number, event in self.epoll.poll(60, 4096) or self.give_up("connect", count - sent):
                client = self.clients[number]
                if client.connected:
                    # Its answer is read by `collect`, unless everything is to be measured in one go.
                    self.read(number, client, self.early)
                elif self.advance(number, client):
                    sent += 1
        return {"began": began, "ended": time.monotonic()}

    def advance(self, number, client):
        """Continues a connection. True once its request has been sent."""
        try:
            if self.context and not isinstance(client.stream, ssl.SSLSocket):
                self.check(client)
                client.stream = self.context.wrap_socket(client.stream, do_handshake_on_connect=False)
            if self.context:
                client.stream.do_handshake()
            else:
                self.check(client)
            client.stream.send(self.request)
        except ssl.SSLWantReadError:
            self.epoll.modify(number, select.EPOLLIN)
            return False
        except ssl.SSLWantWriteError:
            self.epoll.modify(number, select.EPOLLOUT)
            return False
        client.connected = True
        self.epoll.modify(number, select.EPOLLIN)
        return True

    def check(self, client):
        error = client.stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")

    def read(self, number, client, answered, bytes_at=None):
        """Reads what has arrived, and appends the client to `answered` if its answer is complete."""
        while True:
            try:
                size = client.stream.recv_into(BUFFER)
            except (ssl.SSLWantReadError, BlockingIOError):
                return
            if size == 0:
                raise EOFError(f"the server closed a connection after {len(client.head)} bytes")
            now = time.monotonic()
            if bytes_at is not None:
                tenth = int(now * 10)
                bytes_at[tenth] = bytes_at.get(tenth, 0) + size
            if client.take(BUFFER[:size]):
                client.done = now
                answered.append(client)
                return
            if self.context is None and size < len(BUFFER):
                return

    def collect(self, timeout):
        answered, bytes_at, end = self.early, {}, time.monotonic() + timeout
        self.early = []
        while len(answered) < len(self.clients) and time.monotonic() < end:
            for number, _ in self.epoll.poll(0.1, 4096):
                self.read(number, self.clients[number], answered, bytes_at)
        times = [client.done for client in answered]
        times.sort()
        statuses = {}
        for client in answered:
            statuses[client.status] = statuses.get(client.status, 0) + 1
        return {"times": times, "statuses": statuses, "bytes": sum(client.body for client in answered),
                "by_tenth": bytes_at, "missing": len(self.clients) - len(answered)}

    def send(self, headers):
        self.request = self.render(headers)
        for client in self.clients.values():
            client.expect_answer()
            client.stream.send(self.request)
        return {}

    def leave(self):
        for client in self.clients.values():
            client.stream.close()
        self.clients = {}
        return {}

    def give_up(self, what, count):
        raise TimeoutError(f"{what}: {count} clients without progress for a minute")


def main():
    gc.disable()
    crowd = Crowd(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        command = json.loads(line)
        act = getattr(crowd, command.pop("do"))
        try:
            answer = act(**command)
        except Exception as error:  # Reported to the process that asked.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
