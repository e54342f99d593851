"""Long polls: memory and CPU of waiting clients, fan-out of a new version, and clients that connect at once."""
import math, time

from lib import artifacts, crowd, host, servers
from lib.report import median, percentile

BODY = 20_000
# As OPA asks.
PREFER = "Prefer: modes=snapshot,delta;wait=300"


def capacity():
    """Waiters of one bundlegate process: 90 % of `max_connections`, within the limit of open files."""
    return int(max_connections() * 0.9) - 10


def max_connections():
    return min(host.raise_open_files() - 1000, 100_000)


class Gateways:
    """As many bundlegate processes as the waiters need, over the same two bundles."""

    def __init__(self, settings, name, waiters, scheme, **long_poll):
        self.work, self.scheme, self.waiters = settings.work, scheme, waiters
        self.layout = f"{settings.work}/layout-fan"
        self.publish()
        artifacts.write_artifact(f"{settings.work}/layout-other", artifacts.noise(2000))
        count = math.ceil(waiters / capacity())
        self.counts = [waiters // count + (index < waiters % count) for index in range(count)]
        self.processes = [self.start(settings, f"{name}-{index}", long_poll) for index in range(count)]
        self.data = [process.data for process in self.processes]

    def start(self, settings, name, long_poll):
        config = servers.base_config(servers.layout_bundles(["fan", "other"]), long_poll=long_poll,
                                     server={"max_connections": max_connections()})
        gateway = servers.Gateway(settings.program, settings.work, name, config, self.scheme)
        for bundle in ("fan", "other"):
            gateway.await_bundle(bundle)
        return gateway

    def publish(self):
        """Replaces the bundle by other bytes, which the gateways notice by inotify."""
        self.layer = artifacts.noise(BODY)
        artifacts.write_artifact(self.layout, self.layer)

    def tag(self, bundle="fan"):
        return servers.request(self.data[0], f"/bundles/{bundle}", scheme=self.scheme)[1]["ETag"]

    def headers(self, bundle="fan"):
        return [f"If-None-Match: {self.tag(bundle)}", PREFER]

    def crowd(self):
        return crowd.Crowd(self.data, self.counts, "/bundles/fan", self.headers(), self.scheme == "https")

    def bystander(self):
        headers = [f"If-None-Match: {self.tag('other')}"]
        return crowd.Bystander(self.data[0], "/bundles/other", headers, self.scheme == "https")

    def await_waiters(self):
        for process, count in zip(self.processes, self.counts):
            end = time.monotonic() + 60
            while process.metric(r"bundlegate_waiters\{[^}]*\}") < count:
                if time.monotonic() > end:
                    host.die(f"{count} clients do not wait: {process.tail()}")
                time.sleep(0.1)

    def stop(self):
        for process in self.processes:
            process.stop()


class Channel:
    """nginx with nchan, in the place of `Gateways`."""

    def __init__(self, settings, waiters, scheme):
        self.scheme, self.counts = scheme, [waiters]
        server = servers.Nchan(settings.work)
        self.processes = [server]
        self.data = [server.tls if scheme == "https" else server.plain]
        server.await_status(server.publisher, "/pub", status=404)

    def publish(self):
        self.layer = artifacts.noise(BODY)
        self.processes[0].publish(self.layer)

    def headers(self):
        return []

    def crowd(self):
        return crowd.Crowd(self.data, self.counts, "/sub", [], self.scheme == "https")

    def bystander(self):
        return None

    def await_waiters(self):
        time.sleep(2)

    def stop(self):
        self.processes[0].stop()


def total_memory(servers_):
    """(RSS, PSS) of all processes in kB."""
    both = [server.memory() for server in servers_.processes]
    return sum(rss for rss, _ in both), sum(pss for _, pss in both)


def total_cpu(servers_):
    return [server.cpu() for server in servers_.processes]


def cpu_since(servers_, before):
    return sum(server.cpu_since(then) for server, then in zip(servers_.processes, before))


class FanOut:
    """One new version to all waiters: milliseconds, and CPU microseconds for each."""

    def __init__(self, servers_, clients):
        waiters, bystander = sum(servers_.counts), servers_.bystander()
        clients.start(do="collect", timeout=60)
        time.sleep(0.3)
        if bystander:
            bystander.latencies()
        before, began = total_cpu(servers_), time.monotonic()
        servers_.publish()
        found = crowd.merged(clients.answers())
        self.slowest = 1000 * bystander.latencies()[-1] if bystander else None
        if bystander:
            bystander.end()
        check_answers(found, waiters, len(servers_.layer))
        times = [1000 * (one - began) for one in found["times"]]
        self.median, self.last, self.first_to_last = percentile(times, 0.5), times[-1], times[-1] - times[0]
        self.cpu = 1e6 * cpu_since(servers_, before) / waiters


def check_answers(found, waiters, size):
    if found["missing"] or found["statuses"] != {200: waiters} or found["bytes"] != waiters * size:
        host.die(f"{waiters} clients got {found['statuses']} with {found['bytes']} bytes, {found['missing']} nothing")


def population(servers_, settings):
    """The cells of a row: one crowd from its arrival until 30 s after it has left."""
    waiters = sum(servers_.counts)
    empty = total_memory(servers_)
    clients = servers_.crowd()
    arrival = clients.connect()
    servers_.await_waiters()
    time.sleep(settings.settle)
    waiting = total_memory(servers_)
    before = total_cpu(servers_)
    time.sleep(settings.idle)
    idle = 100 * cpu_since(servers_, before) / settings.idle
    rounds = []
    for _ in range(settings.fan_outs):
        rounds.append(FanOut(servers_, clients))
        clients.command(do="send", headers=servers_.headers())
        servers_.await_waiters()
    time.sleep(settings.settle)
    again = total_memory(servers_)
    clients.command(do="leave")
    time.sleep(settings.after)
    left = total_memory(servers_)
    clients.end()
    each = lambda memory: "{:.2f} / {:.2f}".format(*((now - then) / waiters for now, then in zip(memory, empty)))
    slowest = [one.slowest for one in rounds if one.slowest is not None]
    return [each(waiting), f"{idle:.2f}", *(f"{median(getattr(one, name) for one in rounds):.0f}" for name in
            ("first_to_last", "median", "last", "cpu")), f"{max(slowest):.1f}" if slowest else "–",
            each(again), f"{empty[1] / 1024:.0f} → {left[1] / 1024:.0f}", f"{arrival:.1f}"]


def waiters(settings, report):
    """Waiting clients and fan-out."""
    report.section(f"Long polls and fan-out of {BODY // 1000} KB", [
        "server", "waiters", "KB a waiter (RSS / PSS)", "idle CPU %", "first to last ms", "published to median ms",
        "published to last ms", "CPU µs a waiter", "slowest bystander 304 ms", "KB a waiter after fan-outs",
        f"MB of PSS before, {settings.after} s after", "arrival s"],
        f"KB of 1024 bytes of process memory; medians of {settings.fan_outs} fan-outs, `long_poll.spread: 0s`. The "
        f"bystander repeats a 304 on a connection of its own.")
    for scheme in settings.words("SCHEMES", "http https"):
        for count in map(int, settings.words("WAITERS", "10000 50000", "1000")):
            gateways = Gateways(settings, f"waiters-{scheme}-{count}", count, scheme, spread="0s")
            processes = len(gateways.processes)
            name = "bundlegate" if processes == 1 else f"bundlegate, {processes} processes"
            report.row(f"{name}, {scheme}", count, *population(gateways, settings))
            gateways.stop()
        count = settings.number("NCHAN_WAITERS", 10_000, 1000)
        if count:
            channel = Channel(settings, count, scheme)
            report.row(f"nginx nchan, {scheme}", count, *population(channel, settings))
            channel.stop()
    report.line("")
    report.line(f"A process may open {host.raise_open_files()} files here, so more than {capacity()} waiters need "
                f"several processes, all on the server core.")


def storm(settings, report, origin):
    """Clients that connect at once, each with a request for a 304."""
    count = min(settings.number("STORM", 10_000, 1000), capacity())
    report.section(f"{count} connects at once, each with a request for a 304", [
        "server", "all answered within s (median)", "slowest round s", "CPU µs a client"])
    config = servers.base_config(servers.layout_bundles(["2KB"]), server={"max_connections": max_connections()})
    gateway = servers.Gateway(settings.program, settings.work, "storm", config)
    gateway.await_bundle("2KB")
    rounds = {"bundlegate": [], "nginx": []}
    places = [("bundlegate", gateway, gateway.data), ("nginx", origin.nginx, origin.nginx.plain)]
    for _ in range(settings.rounds):
        for name, server, address in places:
            rounds[name].append(storm_round(server, address, count))
    for name, found in rounds.items():
        report.row(name, f"{median(took for took, _ in found):.2f}", f"{max(took for took, _ in found):.2f}",
                   f"{1e6 * median(cpu for _, cpu in found) / count:.0f}")
    gateway.stop()


def storm_round(server, address, count):
    tag = servers.request(address, "/bundles/2KB")[1]["ETag"]
    clients = crowd.Crowd([address], [count], "/bundles/2KB", [f"If-None-Match: {tag}"])
    before = server.cpu()
    began = clients.command(do="connect", under_way=count)[0]["began"]
    found = crowd.merged(clients.command(do="collect", timeout=60))
    if found["missing"] or found["statuses"] != {304: count}:
        host.die(f"{count} clients of {server.name} got {found['statuses']}, {found['missing']} nothing")
    cpu = server.cpu_since(before)
    clients.command(do="leave")
    clients.end()
    return found["times"][-1] - began, cpu


def bandwidth(settings, report):
    """A new version under `long_poll.bandwidth`: bytes a second over time."""
    count = min(settings.number("BANDWIDTH_WAITERS", 10_000, 1000), capacity())
    limit = settings.text("BANDWIDTH", "10MiB")
    report.section(f"A new version of {BODY // 1000} KB to {count} waiters, `long_poll.bandwidth: {limit}`",
                   ["second after the publication", "MiB received"])
    gateways = Gateways(settings, "bandwidth", count, "http", bandwidth=limit)
    if gateways.processes[0].left_out:
        report.line(f"not measured: {gateways.processes[0].left_out}")
    else:
        clients = gateways.crowd()
        clients.connect()
        gateways.await_waiters()
        clients.start(do="collect", timeout=120)
        time.sleep(0.3)
        began = time.monotonic()
        gateways.publish()
        found = crowd.merged(clients.answers())
        check_answers(found, count, len(gateways.layer))
        received = by_second(found["by_tenth"], began)
        for second in range(max(received) + 1):
            report.row(second, f"{received.get(second, 0) / 2**20:.2f}")
        report.line("")
        report.line(f"The last answer was complete {found['times'][-1] - began:.1f} s after the publication; "
                    f"{found['bytes'] / 2**20:.0f} MiB in all.")
        clients.end()
    gateways.stop()


def by_second(by_tenth, began):
    """Bytes by the second since `began`."""
    received = {}
    for tenth, size in by_tenth.items():
        second = max(0, math.floor(tenth / 10 - began))
        received[second] = received.get(second, 0) + size
    return received
