"""Load generators: wrk, h2load, and connections.py for resumed TLS sessions."""
import json, os, re, subprocess, sys
from dataclasses import dataclass

from lib import host

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "result.lua")
CONNECTIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "connections.py")


@dataclass
class Load:
    """`count` answers in `seconds`."""
    count: float
    seconds: float


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        host.die(f"failed: {' '.join(map(str, command))}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


def url_of(address, scheme, path):
    return f"{scheme}://{address[0]}:{address[1]}{path}"


def wrk(address, scheme, path, headers, seconds, connections, answer_bytes=0):
    """With `answer_bytes`, answers are counted by the bytes that arrived, so that unfinished ones count."""
    flags = [part for header in headers for part in ("-H", header)]
    text = run([host.program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", SCRIPT,
                *flags, url_of(address, scheme, path)])
    requests, received, micros, failed = map(int, re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", text).groups())
    if failed or not requests:
        host.die(f"{failed} of {requests} requests failed at {url_of(address, scheme, path)}: {text}")
    return Load(received / answer_bytes if answer_bytes else requests, micros / 1e6)


def h2load(address, path, headers, seconds, connections=16, streams=8):
    expected = "3xx" if headers else "2xx"
    flags = [part for header in headers for part in ("-H", header)]
    text = run([host.program("h2load"), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}",
                "--warm-up-time=0", *flags, url_of(address, "https", path)])
    words = ("succeeded", "failed", expected)
    good, bad, status = (int(re.search(rf"(\d+) {word}", text).group(1)) for word in words)
    if bad or not good or status < good:
        host.die(f"{bad} requests failed at {url_of(address, 'https', path)}: {text}")
    return Load(good, seconds)


def tls_connections(address, path, headers, seconds, resume):
    """One connection for each request, from connections.py."""
    text = run([sys.executable, CONNECTIONS, address[0], address[1], path, seconds, int(resume), *headers])
    found = json.loads(text)
    resumed = found["resumed"] / max(found["count"], 1)
    if (resumed < 0.95) if resume else (resumed > 0):
        host.die(f"{resumed:.0%} of the TLS sessions at {address} were resumed")
    return Load(found["count"], found["seconds"])
