#!/usr/bin/env python3
"""Opens a TLS 1.3 connection for each request, in four processes: HOST PORT PATH SECONDS RESUME(0|1) HEADER….

Prints the number of answers, of resumed sessions, and the elapsed seconds as JSON. With RESUME=1 each
process continues its last session by a ticket, as a client does that keeps a session cache.
"""
import json, multiprocessing, socket, ssl, sys, time

WORKERS = 4


def connect(address, context, request, session):
    """(whether the session was resumed, the session to continue) after one request."""
    with socket.create_connection(address) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, session=session) as stream:
            stream.sendall(request)
            answer = stream.recv(65536)
            if not answer.startswith(b"HTTP/1.1 "):
                sys.exit(f"no answer: {answer[:100]}")
            # The server closes the connection.
            while stream.recv(65536):
                pass
            # Tickets follow the handshake, so they have been read by now.
            return stream.session_reused, stream.session


def work(address, path, headers, seconds, resume, results):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    head = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    request = "\r\n".join(head).encode()
    session = connect(address, context, request, None)[1] if resume else None
    count = resumed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reused, last = connect(address, context, request, session)
        session = last if resume else None
        count, resumed = count + 1, resumed + reused
    results.put((count, resumed))


def main():
    host, port, path, seconds, resume, *headers = sys.argv[1:]
    results = multiprocessing.Queue()
    arguments = ((host, int(port)), path, headers, float(seconds), resume == "1", results)
    workers = [multiprocessing.Process(target=work, args=arguments) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    totals = [results.get(timeout=float(seconds) + 60) for _ in workers]
    for worker in workers:
        worker.join()
    print(json.dumps({"count": sum(count for count, _ in totals), "resumed": sum(resumed for _, resumed in totals),
                      "seconds": float(seconds)}))


if __name__ == "__main__":
    main()
