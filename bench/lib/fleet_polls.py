#!/usr/bin/env python3
"""Many named clients that each poll every bundle once, as a proxy forwards them: pipelined on a few connections.

Reads {"host", "port", "header", "names", "bundles": [[path, tag], …]} from stdin, and answers {} once it is
connected. Each further line with {"first", "count"} polls for so many of the names, and is answered with
{"seconds", "requests"} once all answers have arrived, which have to be 304.
"""
import json, socket, sys, time

CONNECTIONS = 16
# Requests that are sent on a connection before their answers are read; those of one client stay together.
PIPELINED = 100
AGENT = "Open Policy Agent/1.22.2 (linux, amd64)"


class Fleet:
    def __init__(self, setup):
        self.streams = [socket.create_connection((setup["host"], setup["port"])) for _ in range(CONNECTIONS)]
        for stream in self.streams:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.names, self.bundles = setup["names"], len(setup["bundles"])
        self.before, after = [], f"\r\nUser-Agent: {AGENT}\r\n\r\n"
        for path, tag in setup["bundles"]:
            self.before.append(f"GET {path} HTTP/1.1\r\nHost: gate\r\nIf-None-Match: {tag}\r\n{setup['header']}: ")
        self.after = after

    def poll(self, first, count):
        """Seconds until all of these clients have polled every bundle."""
        began, each = time.monotonic(), max(1, PIPELINED // self.bundles)
        step = each * CONNECTIONS
        for start in range(first, first + count, step):
            names = self.names[start:min(start + step, first + count)]
            parts = [names[at:at + each] for at in range(0, len(names), each)]
            for stream, part in zip(self.streams, parts):
                stream.sendall(self.render(part))
            for stream, part in zip(self.streams, parts):
                receive(stream, len(part) * self.bundles)
        return time.monotonic() - began

    def render(self, names):
        return "".join([before + name + self.after for name in names for before in self.before]).encode()


def receive(stream, count):
    """Reads so many answers without a body."""
    answer = bytearray()
    while not answer.endswith(b"\r\n\r\n") or answer.count(b"\r\n\r\n") < count:
        more = stream.recv(1 << 18)
        if not more:
            raise EOFError("the server closed a connection")
        answer += more
    if answer.count(b"HTTP/1.1 304 ") != count:
        raise ValueError(f"not only 304s: {bytes(answer[:300])}")


def main():
    fleet = Fleet(json.loads(sys.stdin.readline()))
    print("{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        seconds = fleet.poll(**command)
        print(json.dumps({"seconds": seconds, "requests": command["count"] * fleet.bundles}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (OSError, EOFError, ValueError) as error:
        print(json.dumps({"error": f"clients of the fleet view: {error}"}), flush=True)
