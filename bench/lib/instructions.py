"""Instructions of a request in user space: `bundlegate serve` under callgrind with one worker thread.

h2load sends N and then 2N requests, one at a time, on one connection. The difference divided by N is the cost of
a request. What the idle process does in the same time is subtracted, and of the repeats the minimum counts,
because other load on the machine only adds.
"""
import os, re, shutil, subprocess, tempfile, time
from dataclasses import dataclass, field

from lib import artifacts, host, servers

REQUESTS = int(os.environ.get("REQUESTS", "2000"))
REPEATS = int(os.environ.get("REPEATS", "3"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SIZES = {"2KB": 2000, "20KB": 20000}


@dataclass
class Case:
    """Requests for a bundle, `conditional` for a 304; `flags` are those of h2load, `headers` of the requests."""
    name: str
    scheme: str
    bundle: str
    conditional: bool
    flags: list = field(default_factory=list)
    headers: dict = field(default_factory=dict)


class Counted(servers.Gateway):
    """A gateway under callgrind; `more` are further keys of its configuration."""

    def __init__(self, program, work, name, scheme, more):
        self.dumps = f"{work}/callgrind-{name}"
        valgrind = [host.program("valgrind"), "--tool=callgrind", f"--callgrind-out-file={self.dumps}"]
        config = servers.base_config(**{"bundles": servers.layout_bundles(SIZES), **more})
        # One core means one worker thread.
        super().__init__(program, work, f"counted-{name}", config, scheme, prefix=valgrind)
        for bundle in SIZES:
            self.await_bundle(bundle)
        self.idle = self.idle_rate()

    def idle_rate(self):
        """Instructions a second without requests."""
        counts = []
        self.count()
        # Their difference does not contain what a call of `count` adds.
        for seconds in (1, 6):
            time.sleep(seconds)
            counts.append(self.count())
        return max(0, counts[1] - counts[0]) / 5

    def count(self):
        """The instructions since the last call."""
        number = len(self.dump_files()) + 1
        host.output(host.program("callgrind_control"), "-d", str(self.process.pid))
        path, end = f"{self.dumps}.{number}", time.monotonic() + 60
        while time.monotonic() < end:
            found = os.path.exists(path) and re.search(r"^totals: (\d+)", open(path).read(), re.M)
            if found:
                return int(found.group(1))
            time.sleep(0.05)
        host.die(f"callgrind writes no {path}: {self.tail()}")

    def dump_files(self):
        folder, name = os.path.split(self.dumps)
        return [one for one in os.listdir(folder) if one.startswith(name + ".")]

    def instructions(self, case):
        """Instructions of one request."""
        path, headers = f"/bundles/{case.bundle}", case.headers
        if case.conditional:
            headers = {**headers, "If-None-Match": self.tag(case)}
        flags = [*case.flags, *(flag for name, value in headers.items() for flag in ("-H", f"{name}: {value}"))]
        self.send(200, path, flags)
        self.count()
        once, twice = [], []
        for _ in range(REPEATS):
            once.append(self.cost(REQUESTS, path, flags))
            twice.append(self.cost(2 * REQUESTS, path, flags))
        return round((min(twice) - min(once)) / REQUESTS)

    def tag(self, case):
        """The tag of the version that the client of a case runs."""
        return servers.request(self.data, f"/bundles/{case.bundle}", case.headers, self.scheme)[1]["ETag"]

    def cost(self, count, path, flags):
        """The instructions of so many requests, and of their connection."""
        began = time.monotonic()
        self.send(count, path, flags)
        return self.count() - self.idle * (time.monotonic() - began)

    def send(self, count, path, flags):
        """Sends requests one at a time on one connection."""
        url = f"{self.scheme}://{self.data[0]}:{self.data[1]}{path}"
        command = [host.program("h2load"), "-c1", "-m1", "-t1", f"-n{count}", *flags, url]
        text = host.output(*host.on_core(host.CLIENT_CORE, *command))
        done = re.search(r"(\d+) succeeded", text)
        if not done or int(done.group(1)) != count:
            host.die(f"h2load failed at {url}: {text}")


def built():
    """The binary in BUNDLEGATE, or a new build without jemalloc, whose build takes long."""
    if "BUNDLEGATE" in os.environ:
        return host.binary()
    subprocess.run(["cargo", "build", "--profile", "instructions", "--locked", "--bin", "bundlegate"], cwd=host.ROOT,
                   check=True)
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(host.ROOT, "target")
    return os.path.join(target, "instructions", "bundlegate")


def measure(program, cases, variants, gateway=Counted):
    """{variant: {case: instructions}}; `variants` has the further keys of each configuration, and `gateway` starts
    it."""
    work = tempfile.mkdtemp(prefix="bundlegate-instructions-")
    os.mkdir(f"{work}/logs")
    try:
        servers.make_certificate(work)
        for name, size in SIZES.items():
            artifacts.write_artifact(f"{work}/layout-{name}", artifacts.noise(size))
        gateways = {(variant, scheme): gateway(program, work, f"{variant}-{scheme}", scheme, more)
                    for variant, more in variants.items() for scheme in ("http", "https")}
        counts = {variant: {} for variant in variants}
        for case in cases:
            for variant in variants:
                counts[variant][case.name] = gateways[variant, case.scheme].instructions(case)
        return counts
    finally:
        servers.stop_all()
        shutil.rmtree(work, ignore_errors=True)


def least(program, cases, variants, enough, gateway=Counted):
    """The least counts of at most ROUNDS measurements, which end when they are `enough`."""
    counts = measure(program, cases, variants, gateway)
    for _ in range(ROUNDS - 1):
        if enough(counts):
            break
        again = measure(program, cases, variants, gateway)
        counts = {variant: {name: min(count, again[variant][name]) for name, count in one.items()}
                  for variant, one in counts.items()}
    return counts
