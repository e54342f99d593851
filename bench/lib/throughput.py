"""Throughput and CPU of answers on kept connections, and of a connection for each request."""
from lib import artifacts, host, load, servers
from lib.report import median

SIZES = {"2KB": 2_000, "20KB": 20_000, "200KB": 200_000, "2MB": 2_000_000, "20MB": 20_000_000}
# Few connections for large answers, so that most of what is sent in a round is complete.
CONNECTIONS = {"2MB": 32, "20MB": 8}


class Origin:
    """The same files in all servers: OCI layouts for bundlegate, `www` for the others."""

    def __init__(self, settings):
        self.settings, work = settings, settings.work
        self.layers = {name: artifacts.noise(size) for name, size in SIZES.items()}
        for name, layer in self.layers.items():
            artifacts.write(f"{work}/www/bundles/{name}", layer)
            artifacts.write_artifact(f"{work}/layout-{name}", layer)
        self.nginx = servers.Nginx(work)
        self.nginx.await_status(self.nginx.plain, "/bundles/2KB")

    def gateway(self, scheme):
        config = servers.base_config(servers.layout_bundles(SIZES))
        gateway = servers.Gateway(self.settings.program, self.settings.work, f"throughput-{scheme}", config, scheme)
        for name in SIZES:
            gateway.await_bundle(name)
        return gateway

    def lighttpd(self):
        server = servers.Lighttpd(self.settings.work)
        server.await_status(server.plain, "/bundles/2KB")
        return server


class Target:
    """A server at an address, and the request of a case."""

    def __init__(self, origin, server, address, scheme, case):
        self.server, self.address, self.scheme = server, address, scheme
        self.name = "2KB" if case == "304" else case
        self.path, self.headers = f"/bundles/{self.name}", []
        self.case = case
        status, headers, body = servers.request(address, self.path, scheme=scheme)
        if status != 200 or body != origin.layers[self.name]:
            host.die(f"{server.name} answers {self.path} with {status} and {len(body)} bytes, not with the bundle")
        if case == "304":
            tag = headers["ETag"]
            self.headers = [f"If-None-Match: {tag}"]
            status = servers.request(address, self.path, {"If-None-Match": tag}, scheme)[0]
            if status != 304:
                host.die(f"{server.name} answers {status} instead of 304")
        head = sum(len(name) + len(value) + 4 for name, value in headers.items()) + 19
        # Small answers are counted one by one.
        self.answer_bytes = len(body) + head if len(body) > 100_000 else 0

    def wrk(self, seconds, *more):
        connections = CONNECTIONS.get(self.case, 64)
        return load.wrk(self.address, self.scheme, self.path, [*self.headers, *more], seconds, connections,
                        self.answer_bytes)

    def h2load(self, seconds):
        return load.h2load(self.address, self.path, self.headers, seconds)

    def reconnecting(self, seconds):
        return self.wrk(seconds, "Connection: close")

    def tls_full(self, seconds):
        return load.tls_connections(self.address, self.path, self.headers, seconds, resume=False)

    def tls_resumed(self, seconds):
        return load.tls_connections(self.address, self.path, self.headers, seconds, resume=True)


def measure(targets, generate, settings):
    """{name: [(answers a second, CPU seconds of an answer)]}, interleaved."""
    results = {name: [] for name in targets}
    for _ in range(settings.rounds):
        for name, target in targets.items():
            before = target.server.cpu()
            done = generate(target, settings.seconds)
            results[name].append((done.count / done.seconds, target.server.cpu_since(before) / done.count))
    return results


COLUMNS = ["case", "answers/s", "CPU µs", "nginx answers/s", "nginx CPU µs", "× nginx", "CPU × nginx"]


def ratios(results, name, other):
    """(× throughput, × CPU) of one server against another, as medians of the rounds."""
    pairs = list(zip(results[name], results[other]))
    return median(a[0] / b[0] for a, b in pairs), median(b[1] / a[1] for a, b in pairs)


def row(report, label, results, others=()):
    ours, theirs = results["bundlegate"], results["nginx"]
    cells = []
    for side in (ours, theirs):
        cells += [f"{median(rate for rate, _ in side):.0f}", f"{1e6 * median(cpu for _, cpu in side):.1f}"]
    cells += [f"{ratio:.2f}" for ratio in ratios(results, "bundlegate", "nginx")]
    for other in others:
        cells += ["{:.2f} / {:.2f}".format(*ratios(results, other, "nginx"))]
    report.row(label, *cells)


def http(settings, report, origin):
    """304 and 200 of each size over HTTP/1.1."""
    others = ["nginx+ofc", "lighttpd"]
    report.section("HTTP/1.1, cleartext, kept connections", COLUMNS + [f"{name}: × / CPU ×" for name in others],
                   "64 connections (32 for 2 MB, 8 for 20 MB). From 200 KB on, answers are counted by the bytes "
                   "received.")
    gateway, lighttpd = origin.gateway("http"), origin.lighttpd()
    for case in settings.words("SIZES", "304 " + " ".join(SIZES)):
        places = {"bundlegate": (gateway, gateway.data), "nginx": (origin.nginx, origin.nginx.plain),
                  "nginx+ofc": (origin.nginx, origin.nginx.cached), "lighttpd": (lighttpd, lighttpd.plain)}
        targets = {name: Target(origin, server, address, "http", case) for name, (server, address) in places.items()}
        row(report, case, measure(targets, Target.wrk, settings), others)
    gateway.stop()
    lighttpd.stop()


def both(origin, gateway, scheme, case, address=None):
    """Targets of bundlegate and nginx."""
    address = address or (origin.nginx.tls if scheme == "https" else origin.nginx.plain)
    return {"bundlegate": Target(origin, gateway, gateway.data, scheme, case),
            "nginx": Target(origin, origin.nginx, address, scheme, case)}


def tls(settings, report, origin):
    """304, 20 KB and 2 MB over TLS 1.3 and HTTP/1.1."""
    report.section("HTTP/1.1 over TLS 1.3, kept connections", COLUMNS, "ECDSA P-256 certificate.")
    gateway = origin.gateway("https")
    for case in settings.words("TLS_SIZES", "304 20KB 2MB"):
        row(report, case, measure(both(origin, gateway, "https", case), Target.wrk, settings))
    gateway.stop()


def http2(settings, report, origin):
    """304 and 20 KB over HTTP/2."""
    report.section("HTTP/2 over TLS 1.3", COLUMNS, "16 connections with 8 streams each.")
    gateway = origin.gateway("https")
    for case in settings.words("HTTP2_SIZES", "304 20KB"):
        targets = both(origin, gateway, "https", case, origin.nginx.http2)
        row(report, case, measure(targets, Target.h2load, settings))
    gateway.stop()


def connections(settings, report, origin):
    """A connection for each 304."""
    report.section("A connection for each 304", COLUMNS,
                   "The TLS client is slower than the servers, so only the CPU ratios count there.")
    cases = [("cleartext", "http", Target.reconnecting), ("TLS, full handshake", "https", Target.tls_full),
             ("TLS, resumed", "https", Target.tls_resumed)]
    for label, scheme, generate in cases:
        gateway = origin.gateway(scheme)
        row(report, label, measure(both(origin, gateway, scheme, "304"), generate, settings))
        gateway.stop()
