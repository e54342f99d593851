"""The clients of the fleet view: the memory that they take in a replica and in the state that replicas share, the
time of reading them, and that until another replica shows them."""
import json, os, re, socket, subprocess, time

from lib import artifacts, crowd, host, servers
from lib.report import median, percentile

IDENTITY = "Bundlegate-Client"
# Seconds until another replica has to show all clients.
PATIENCE = 600


def client_name(number):
    """A name as Kubernetes gives them to pods."""
    return f"shop-6d4cf56db6-{number:05x}"


class Size:
    """Clients × bundles."""

    def __init__(self, settings):
        self.clients, self.bundles = settings.number("CLIENTS", 50000, 2000), settings.number("BUNDLES", 20, 5)
        self.entries = self.clients * self.bundles

    def fleet(self):
        """Options under which no client is removed."""
        return {"max_entries": max(1_000_000, 2 * self.entries)}


def start(settings, count, name, **more):
    """A gateway that serves so many bundles, which are the same for all, with further keys in its configuration."""
    names = [f"bundle-{number}" for number in range(count)]
    for number, bundle in enumerate(names):
        layout = f"{settings.work}/layout-{bundle}"
        if not os.path.exists(layout):
            artifacts.write_artifact(layout, artifacts.small_bundle(number))
    config = servers.base_config(servers.layout_bundles(names), **more)
    gateway = servers.Gateway(settings.program, settings.work, name, config)
    for bundle in names:
        gateway.await_bundle(bundle)
    return gateway


class Clients(crowd.Program):
    """So many clients of all bundles of a gateway."""

    def __init__(self, gateway, size):
        paths = [f"/bundles/bundle-{number}" for number in range(size.bundles)]
        bundles = [(path, servers.request(gateway.data, path)[1]["ETag"]) for path in paths]
        super().__init__("fleet_polls.py", {
            "host": gateway.data[0], "port": gateway.data[1], "header": IDENTITY, "bundles": bundles,
            "names": [client_name(number) for number in range(size.clients)]})
        self.count = size.clients
        self.read()

    def poll(self, count=None):
        """Requests a second while each client polls every bundle once."""
        self.write({"first": 0, "count": count or self.count})
        done = self.read()
        return done["requests"] / done["seconds"]


def memory(settings):
    """Prints the memory before and after two polls of each client, and the time of reading them."""
    size = Size(settings)
    gateway = start(settings, size.bundles, "memory", fleet=size.fleet())
    clients = Clients(gateway, size)
    # The buffers of all connections exist afterwards.
    clients.poll(min(500, size.clients))
    before, known = gateway.memory()[0], min(500, size.clients)
    print(f"{size.clients} clients × {size.bundles} bundles")
    print(f"{'':16} {'RSS':>9} {'a client × bundle':>18} {'polls':>11}")
    print(f"{f'{known} clients':16} {before * 1.024 / 1000:6.1f} MB")
    added = (size.clients - known) * size.bundles
    for name in ("one poll each", "two polls each"):
        rate, now = clients.poll(), gateway.memory()[0]
        print(f"{name:16} {now * 1.024 / 1000:6.1f} MB {(now - before) * 1024 / max(added, 1):16.0f} B {rate:9.0f}/s")
    clients.end()
    read_all(settings, gateway, size)
    gateway.stop()


def read_all(settings, gateway, size):
    """Prints the time of the answers that read all clients, and that of 304s beside them."""
    tag = servers.request(gateway.data, "/bundles/bundle-0")[1]["ETag"]
    bystander = crowd.Bystander(gateway.data, "/bundles/bundle-0", [f"If-None-Match: {tag}"])
    print(f"{'':36} {'took':>9} {'bytes':>9} {'304s beside it: p50':>20} {'p99':>7} {'slowest':>8}")
    bystander.latencies()
    time.sleep(2)
    show_read("nothing", "", "", bystander.latencies())
    rounds = settings.number("READS", 5, 2)
    for path in ("/fleet", "/fleet?bundle=bundle-0&limit=100", "/fleet?search=no-such-client", "/metrics", "/"):
        taken, latencies = [], []
        for _ in range(rounds):
            bystander.latencies()
            began = time.monotonic()
            status, _, body = servers.request(gateway.admin, path)
            taken.append(time.monotonic() - began)
            latencies += bystander.latencies()
            if status != 200:
                host.die(f"GET {path} is answered with {status}: {body[:300]}")
        show_read(f"GET {path}", f"{1000 * median(taken):.0f} ms", len(body), sorted(latencies))
    bystander.end()
    found = json.loads(servers.request(gateway.admin, "/fleet")[2])
    shown = min(bundle["clients"] for bundle in found["bundles"].values())
    if shown < size.clients or found["dropped"]:
        host.die(f"{shown} of {size.clients} clients are shown, {found['dropped']} were dropped")
    print(f"RSS afterwards {gateway.memory()[0] * 1.024 / 1000:.1f} MB")


def show_read(name, took, length, latencies):
    p50, p99 = (1000 * percentile(latencies, share) for share in (0.5, 0.99))
    print(f"{name:36} {took:>9} {length:>9} {p50:17.2f} ms {p99:7.2f} {1000 * latencies[-1]:8.2f}", flush=True)


class Redis(servers.Server):
    """A Redis that writes nothing to the disk, on the client core."""

    def __init__(self, work):
        self.address = ("127.0.0.1", servers.free_port())
        super().__init__("redis-server", f"{work}/logs/redis.log", [
            host.program("redis-server"), "--port", self.address[1], "--bind", self.address[0], "--save", "",
            "--appendonly", "no", "--dir", work], host.CLIENT_CORE)
        self.await_line("Ready to accept connections")

    def info(self, name):
        """A number in the answer to INFO."""
        with socket.create_connection(self.address, timeout=60) as stream:
            stream.sendall(b"INFO\r\nQUIT\r\n")
            text = b""
            while more := stream.recv(1 << 16):
                text += more
        return int(re.search(rf"^{name}:(\d+)", text.decode(), re.M).group(1))


def refusal_of_shared(settings, config):
    """What `config check` says against the key `shared`, or nothing."""
    path = f"{settings.work}/check.yaml"
    artifacts.write(path, json.dumps(config).encode())
    checked = subprocess.run([settings.program, "config", "check", path], capture_output=True, text=True)
    return checked.stderr.strip() if checked.returncode != 0 and "shared" in checked.stderr else None


def shared(settings):
    """Prints the memory of a Redis, and the time until another replica shows all clients."""
    if "absent" == host.first_version("redis-server", "--version"):
        print("left out: redis-server is not installed")
        return
    refusal = refusal_of_shared(settings, servers.base_config({}, shared={"url": "redis://127.0.0.1:6379/0"}))
    if refusal:
        print(f"left out: {refusal.splitlines()[0]}")
        return
    size, engine = Size(settings), Redis(settings.work)
    keys = {"fleet": size.fleet(), "shared": {"url": f"redis://127.0.0.1:{engine.address[1]}/0"}}
    first, second = (start(settings, size.bundles, f"shared-{number}", **keys) for number in (1, 2))
    clients = Clients(first, size)
    before = engine.info("used_memory")
    print(f"{size.clients} clients × {size.bundles} bundles, Redis {host.first_version('redis-server', '--version')}")
    print(f"{'':16} {'used_memory':>12} {'a client × bundle':>18} {'polls':>11} {'shown by the other replica':>27}")
    print(f"{'no client':16} {before / 1e6:9.1f} MB")
    for name in ("one poll each", "two polls each"):
        rate = clients.poll()
        took = f"{await_clients(second, size):.1f} s later"
        used = engine.info("used_memory")
        print(f"{name:16} {used / 1e6:9.1f} MB {(used - before) / size.entries:16.0f} B {rate:9.0f}/s {took:>27}",
              flush=True)
    # What is written in the background is written by then.
    time.sleep(settings.number("SHARED_SETTLE", 10, 3))
    used = engine.info("used_memory")
    print(f"{'later':16} {used / 1e6:9.1f} MB {(used - before) / size.entries:16.0f} B")
    print(f"RSS of the replica that was polled {first.memory()[0] * 1.024 / 1000:.1f} MB, of the other one "
          f"{second.memory()[0] * 1.024 / 1000:.1f} MB")
    clients.end()
    for server in (first, second, engine):
        server.stop()


def await_clients(gateway, size):
    """Seconds from now until a replica shows all clients of all bundles."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        found = json.loads(servers.request(gateway.admin, "/fleet")[2])
        taken = time.monotonic() - began
        shown = [bundle["clients"] for bundle in found["bundles"].values()]
        if len(shown) == size.bundles and min(shown) >= size.clients:
            return taken
        time.sleep(0.2)
    host.die(f"after {PATIENCE} s the other replica shows {shown} clients of {size.clients}: {gateway.tail()}")
