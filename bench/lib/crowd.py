"""Clients that wait in a long poll, and a bystander that polls meanwhile, as processes on the client core."""
import json, os, subprocess, sys
from itertools import count

from lib import host

FOLDER = os.path.dirname(os.path.abspath(__file__))
# A block of source addresses for each process, since closed connections keep their ports for a minute.
sources = count(0, 10)
running = []


class Program:
    """A Python program that answers each line of JSON with one."""

    def __init__(self, name, first):
        self.process = subprocess.Popen([sys.executable, os.path.join(FOLDER, name)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        running.append(self)
        self.write(first)

    def write(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def read(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the program of the clients has ended"}
        if "error" in answer:
            host.die(answer["error"])
        return answer

    def end(self):
        running.remove(self)
        self.process.kill()
        self.process.communicate()


def stop_all():
    for program in list(running):
        program.end()


class Crowd:
    """`count` clients of each address, one process for each."""

    def __init__(self, addresses, counts, path, headers, tls=False):
        self.programs = [Program("crowd_client.py", {
            "host": address[0], "port": address[1], "tls": tls, "first_source": next(sources), "count": number,
            "path": path, "headers": headers}) for address, number in zip(addresses, counts)]

    def command(self, **message):
        """Sends a command to all processes, then returns their answers."""
        for program in self.programs:
            program.write(message)
        return [program.read() for program in self.programs]

    def start(self, **message):
        """Sends a command, whose answers `answers` returns."""
        for program in self.programs:
            program.write(message)

    def answers(self):
        return [program.read() for program in self.programs]

    def connect(self, under_way=256):
        """Seconds until every client has sent its request."""
        answers = self.command(do="connect", under_way=under_way)
        return max(one["ended"] for one in answers) - min(one["began"] for one in answers)

    def end(self):
        for program in self.programs:
            program.end()


def merged(answers):
    """The sum of what several processes collected."""
    result = {"times": sorted(time for one in answers for time in one["times"]), "statuses": {}, "by_tenth": {},
              "bytes": sum(one["bytes"] for one in answers), "missing": sum(one["missing"] for one in answers)}
    for one in answers:
        for name in ("statuses", "by_tenth"):
            for key, value in one[name].items():
                result[name][int(key)] = result[name].get(int(key), 0) + value
    return result


class Bystander(Program):
    """One connection that repeats a request every `pause` seconds, and records each latency."""

    def __init__(self, address, path, headers, tls=False, pause=0.001):
        super().__init__("bystander.py", {"host": address[0], "port": address[1], "tls": tls, "path": path,
                                          "headers": headers, "pause": pause})
        self.read()

    def latencies(self):
        """Seconds of each request since the last call, ascending."""
        self.write({})
        return self.read()["latencies"]
