#!/usr/bin/env python3
"""Repeats one request on one connection, and records the latency of each answer.

Reads {"host", "port", "tls", "path", "headers", "pause"} from stdin, and answers {} once the first
answer has arrived. Answers each further line with {"latencies": [seconds, …]}, ascending, of the
requests since the line before.
"""
import json, os, select, socket, ssl, sys, time


def be_scheduled_first():
    # Other clients on this core must not delay it. Without the privilege it does not matter much.
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass


def connect(setup):
    plain = socket.create_connection((setup["host"], setup["port"]))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not setup["tls"]:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def ask(stream, request):
    """Seconds until the head of an answer without a body has arrived."""
    began = time.monotonic()
    stream.sendall(request)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = stream.recv(65536)
        if not more:
            raise EOFError("the server closed the connection")
        answer += more
    taken = time.monotonic() - began
    if not answer.startswith(b"HTTP/1.1 304 "):
        raise ValueError(f"no 304: {answer[:100]}")
    return taken


def main():
    setup = json.loads(sys.stdin.readline())
    be_scheduled_first()
    head = [f"GET {setup['path']} HTTP/1.1", f"Host: {setup['host']}", *setup["headers"], "", ""]
    request, stream = "\r\n".join(head).encode(), connect(setup)
    ask(stream, request)
    print("{}", flush=True)
    latencies = []
    while True:
        if select.select([sys.stdin], [], [], setup["pause"])[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps({"latencies": sorted(latencies)}), flush=True)
            latencies = []
        latencies.append(ask(stream, request))


if __name__ == "__main__":
    try:
        main()
    except (OSError, EOFError, ValueError) as error:
        print(json.dumps({"error": f"bystander: {error}"}), flush=True)
