#!/usr/bin/env python3
"""Named clients that poll and send status reports at steady rates, on a few connections.

Reads {"host", "port", "header", "names", "connections", "path", "tag", "realtime", "labels", "tail"} from stdin,
and answers {} once each client has polled. A report consists of the labels and bundles of its client and of `tail`,
the rest of its JSON document. Each further line with {"polls", "reports", "seconds"}, both a second, is answered with
  "polls", "reports"    ascending latencies in seconds, from when a request was due
  "late"                requests that were due and were not sent, because every connection waited for an answer
  "broken"              connections that the server closed
  "unanswered"          requests on them that were not answered
"""
import json, os, select, socket, sys, time
from collections import deque

sys.dont_write_bytecode = True
from bystander import be_scheduled_first

AGENT = "Open Policy Agent/1.22.2 (linux, amd64)"
# For a whole report, so that sending one does not wait for the server.
SEND_BUFFER = 1 << 18


class Connection:
    def __init__(self, address):
        self.address, self.kind, self.due, self.answer = address, None, 0.0, b""
        self.open()

    def open(self):
        self.stream = socket.create_connection(self.address)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def send(self, kind, due, request):
        self.kind, self.due, self.answer = kind, due, b""
        self.stream.sendall(request)

    def is_answered(self):
        """Whether the answer is complete after what has arrived; it has no body."""
        more = self.stream.recv(65536)
        if not more:
            raise EOFError
        self.answer += more
        expected = b"HTTP/1.1 304 " if self.kind == "polls" else b"HTTP/1.1 204 "
        if not self.answer.startswith(expected[:len(self.answer)]):
            raise ValueError(f"{self.kind}: {self.answer[:200]}")
        return self.answer.endswith(b"\r\n\r\n")


class Schedule:
    """Requests at a steady rate."""

    def __init__(self, kind, rate, began):
        self.kind, self.rate, self.began, self.sent = kind, rate, began, 0

    def next_due(self):
        return self.began + self.sent / self.rate if self.rate else float("inf")


class Clients:
    def __init__(self, setup):
        address = (setup["host"], setup["port"])
        self.setup, self.names = setup, setup["names"]
        self.tail, self.epoll = setup["tail"].encode(), select.epoll()
        self.open, self.idle = {}, deque()
        for _ in range(setup["connections"]):
            self.add(Connection(address))
        self.numbers = {"polls": 0, "reports": 0}
        self.reset()

    def reset(self):
        self.latencies, self.broken, self.unanswered = {"polls": [], "reports": []}, 0, 0

    def add(self, connection):
        self.open[connection.stream.fileno()] = connection
        self.epoll.register(connection.stream.fileno(), select.EPOLLIN)
        self.idle.append(connection)

    def replace(self, connection):
        """Opens a connection again that the server has closed."""
        self.broken += 1
        self.unanswered += connection.kind is not None
        if connection in self.idle:
            self.idle.remove(connection)
        del self.open[connection.stream.fileno()]
        self.epoll.unregister(connection.stream.fileno())
        connection.stream.close()
        connection.kind = None
        connection.open()
        self.add(connection)

    def render(self, kind):
        number = self.numbers[kind]
        self.numbers[kind] = (number + 1) % len(self.names)
        name, setup = self.names[number], self.setup
        common = f"Host: gate\r\nUser-Agent: {AGENT}\r\n{setup['header']}: {name}\r\n"
        if kind == "polls":
            return f"GET {setup['path']} HTTP/1.1\r\n{common}If-None-Match: {setup['tag']}\r\n\r\n".encode()
        head = setup["labels"].replace("NAME", name).encode()
        length = len(head) + len(self.tail)
        common += f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
        return f"POST /status HTTP/1.1\r\n{common}\r\n".encode() + head + self.tail

    def start(self, schedule):
        connection, due = self.idle.popleft(), schedule.next_due()
        schedule.sent += 1
        request = self.render(schedule.kind)
        try:
            connection.send(schedule.kind, due, request)
        except OSError:
            self.replace(connection)

    def read(self, timeout):
        for number, _ in self.epoll.poll(max(0, timeout), 256):
            connection = self.open.get(number)
            try:
                if connection is None or not connection.is_answered():
                    continue
            except (OSError, EOFError):
                self.replace(connection)
                continue
            self.latencies[connection.kind].append(time.monotonic() - connection.due)
            connection.kind = None
            self.idle.append(connection)

    def run(self, polls, reports, seconds):
        self.reset()
        began = time.monotonic()
        end = began + seconds
        schedules = [Schedule("polls", polls, began), Schedule("reports", reports, began)]
        while (now := time.monotonic()) < end:
            for schedule in schedules:
                while schedule.next_due() <= now and self.idle:
                    self.start(schedule)
            next_due = min(schedule.next_due() for schedule in schedules) if self.idle else end
            self.read(min(next_due, end) - time.monotonic())
        late = sum(max(0, int(seconds * one.rate) - one.sent) for one in schedules)
        self.drain(20)
        return {**{kind: sorted(all) for kind, all in self.latencies.items()}, "late": late, "broken": self.broken,
                "unanswered": self.unanswered}

    def drain(self, seconds):
        end = time.monotonic() + seconds
        while len(self.idle) < len(self.open) and time.monotonic() < end:
            self.read(end - time.monotonic())
        if len(self.idle) < len(self.open):
            raise TimeoutError(f"{len(self.open) - len(self.idle)} requests are not answered within {seconds} s")

    def introduce(self):
        """Each client polls, so that its reports have a client."""
        for _ in self.names:
            while not self.idle:
                self.read(5)
            self.start(Schedule("polls", 1, time.monotonic()))
        self.drain(20)


def main():
    setup = json.loads(sys.stdin.readline())
    if setup["realtime"]:
        be_scheduled_first()
    clients = Clients(setup)
    clients.introduce()
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(clients.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, EOFError, ValueError) as error:
        print(json.dumps({"error": f"paced clients: {type(error).__name__}: {error}"}), flush=True)
