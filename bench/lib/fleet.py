"""Cold start, the time from a push to its enforcement by OPA, and background work beside 304s."""
import http.client, json, os, subprocess, time

from lib import artifacts, crowd, host, servers
from lib.report import median, percentile
from lib.waiting import PREFER

TRUST = {"authorities": {"release": {"keys": ["release.pub"], "tlog": "none"}},
         "policies": {"bench": {"require": {"any_of": ["release"]}}}}


def registry_config(registry, bundles, **more):
    """A configuration of signed bundles, (name, repository, poll interval), from the registry."""
    entries = {name: {"reference": f"{registry.host}/{repository}:live", "trust": "bench", "poll": poll}
               for name, repository, poll in bundles}
    return servers.base_config(entries, trust=TRUST, registries={registry.host: {"scheme": "http"}}, **more)


def seconds_of(*command):
    """The elapsed time of a command on the server core, which has to succeed."""
    began = time.monotonic()
    done = subprocess.run(host.on_core(host.SERVER_CORE, *command), capture_output=True, text=True)
    if done.returncode != 0:
        host.die(f"failed: {' '.join(map(str, command))}: {done.stderr[-1000:]}")
    return time.monotonic() - began


def cold(settings, report):
    """Clients at a gateway whose cache is empty, against `oras pull` and a verification."""
    count = settings.number("COLD_CLIENTS", 1000, 100)
    report.section(f"{count} clients at a cold gateway", [
        "bundle", "process start to first answer ms", "to last answer ms", "requests of the layer", "requests in all",
        "oras pull ms", "bundlegate verify ms", "cosign verify ms", "first × (oras + verify)",
        "last × (oras + verify)"],
        "`long_poll.spread: 0s`. Gateway and commands run on the server core, the registry and the clients on the "
        "other. The ratios are to `oras pull` and `bundlegate verify`.")
    registry = servers.Registry(settings.work)
    signer = artifacts.Signer(settings.work)
    for size in settings.words("COLD_SIZES", "20000 2000000"):
        cold_size(settings, report, registry, signer, count, int(size))
    registry.stop()


def cold_size(settings, report, registry, signer, count, size):
    layer = artifacts.noise(size)
    tags, blobs = artifacts.artifact(layer, signer)
    repository = f"team/cold-{size}"
    artifacts.write_repository(registry.storage, repository, tags, blobs)
    reference = f"{registry.host}/{repository}:live"
    commands = {
        "oras": [host.program("oras"), "pull", "--plain-http", reference, "-o", f"{settings.work}/pulled"],
        "verify": [settings.program, "verify", reference, "--plain-http", "--key", signer.public],
        "cosign": [host.program("cosign"), "verify", "--key", signer.public, "--insecure-ignore-tlog",
                   "--allow-http-registry", reference]}
    rounds = []
    for number in range(settings.rounds):
        found = {name: seconds_of(*command) for name, command in commands.items()}
        before = len(registry.requests())
        found["first"], found["last"] = cold_round(settings, registry, repository, count, layer, f"{size}-{number}")
        asked = registry.requests()[before:]
        found["all"] = len(asked)
        found["layer"] = sum(method == "GET" and path.endswith(artifacts.sha(layer)) for method, path in asked)
        rounds.append(found)
    middle = lambda name: median(found[name] for found in rounds)
    ratio = lambda name: median(found[name] / (found["oras"] + found["verify"]) for found in rounds)
    times = [f"{1000 * middle(name):.0f}" for name in ("first", "last", "oras", "verify", "cosign")]
    most = lambda name: max(found[name] for found in rounds)
    report.row(f"{size} B", *times[:2], most("layer"), most("all"), *times[2:], f"{ratio('first'):.2f}",
               f"{ratio('last'):.2f}")


def cold_round(settings, registry, repository, count, layer, name):
    """Seconds from the start of the process until the first and the last client has its answer."""
    port = servers.free_port()
    # The clients exist before the gateway, and connect as soon as it listens.
    clients = crowd.Crowd([("127.0.0.1", port)], [count], "/bundles/cold", [PREFER])
    config = registry_config(registry, [("cold", repository, "1h")], long_poll={"spread": "0s"},
                             server={"listen": f"127.0.0.1:{port}"})
    gateway = servers.Gateway(settings.program, settings.work, f"cold-{name}", config)
    clients.connect(under_way=count)
    found = crowd.merged(clients.command(do="collect", timeout=60))
    if found["missing"] or found["statuses"] != {200: count} or found["bytes"] != count * len(layer):
        host.die(f"{count} clients got {found['statuses']}, {found['missing']} nothing: {gateway.tail()}")
    clients.end()
    gateway.stop()
    return found["times"][0] - gateway.began, found["times"][-1] - gateway.began


def versioned(number):
    """A bundle whose data is its number."""
    manifest = json.dumps({"revision": f"v{number}", "roots": ["authz"]}).encode()
    data = json.dumps({"authz": {"version": number}}).encode()
    return artifacts.tarball([(".manifest", manifest), ("data.json", data)])


def enforced(settings, report):
    """The time from a signed push until a real OPA answers by it."""
    rounds = settings.number("PUSHES", 10, 2)
    report.section("Push → enforced by a real OPA", ["the gateway learns of it by", "median ms", "slowest ms"],
                   f"From the moment at which the signed artifact is in the registry; {rounds} pushes, one OPA in a "
                   f"long poll.")
    registry, signer = servers.Registry(settings.work), artifacts.Signer(settings.work)
    for label, poll, notify in [("poll: 1s", "1s", False), ("POST /refresh/NAME after the push", "1h", True)]:
        push = lambda number: artifacts.write_repository(
            registry.storage, "team/authz", *artifacts.artifact(versioned(number), signer))
        push(0)
        gateway = servers.Gateway(settings.program, settings.work, f"enforced-{poll}",
                                  registry_config(registry, [("authz", "team/authz", poll)]))
        gateway.await_bundle("authz")
        opa = start_opa(settings, gateway)
        await_version(opa, 0)
        taken = []
        for number in range(1, rounds + 1):
            # At different times between two polls.
            time.sleep(1 + number / rounds)
            began = time.monotonic()
            push(number)
            if notify:
                servers.request(gateway.admin, "/refresh/authz", {"Content-Type": "application/json"}, method="POST")
            taken.append(1000 * (await_version(opa, number) - began))
        report.row(label, f"{median(taken):.0f}", f"{max(taken):.0f}")
        opa.stop()
        gateway.stop()
    registry.stop()


def start_opa(settings, gateway):
    port = servers.free_port()
    config = {"services": {"gate": {"url": f"http://{gateway.data[0]}:{gateway.data[1]}"}},
              "bundles": {"authz": {"service": "gate", "resource": "bundles/authz",
                                    "polling": {"long_polling_timeout_seconds": 60}}}}
    artifacts.write(f"{settings.work}/opa.json", json.dumps(config).encode())
    opa = servers.Server("opa", f"{settings.work}/logs/opa.log", [
        host.program("opa"), "run", "--server", "--addr", f"127.0.0.1:{port}", "--disable-telemetry", "--log-level",
        "error", "--config-file", f"{settings.work}/opa.json"], host.CLIENT_CORE)
    opa.address = ("127.0.0.1", port)
    opa.await_status(opa.address, "/health?bundles")
    return opa


def await_version(opa, number):
    """The time at which OPA answers with this version."""
    connection, end = http.client.HTTPConnection(*opa.address, timeout=10), time.monotonic() + 60
    while time.monotonic() < end:
        connection.request("GET", "/v1/data/authz/version")
        if json.loads(connection.getresponse().read()).get("result") == number:
            connection.close()
            return time.monotonic()
        time.sleep(0.002)
    host.die(f"version {number} does not reach OPA: {opa.tail()}")


def background(settings, report):
    """The latency of 304s beside polls and re-verification of thousands of bundles."""
    count, seconds = settings.number("BUNDLES", 5000, 100), settings.number("POLLING", 30, 5)
    report.section(f"304s while {count} signed bundles are polled and re-verified", [
        "phase", "seconds", "304s", "p50 ms", "p99 ms", "p99.9 ms", "slowest ms", "CPU % of a core", "verifications"],
        "One connection, a pause of 1 ms after each answer, poll interval 30 s; \"without\" is a process with one "
        "bundle, before and after the other. Re-verification follows a change of the trust policy.")
    registry, signer = servers.Registry(settings.work), artifacts.Signer(settings.work)
    artifacts.fill_registry(registry.storage, artifacts.small_artifacts(signer, count))
    without(settings, report, registry, seconds)
    names = [(f"bundle-{number}", f"team/bundle-{number}", "30s") for number in range(count)]
    config = registry_config(registry, names, cache={"directory": "cache"}, server={"ready_after": "10m"})
    gateway = servers.Gateway(settings.program, settings.work, "background", config)
    gateway.await_status(gateway.admin, "/readyz", seconds=600)
    while gateway.serving() < count:
        time.sleep(1)
    # Versions are still written to the disk.
    time.sleep(1 if settings.quick else 15)
    phase(report, "polls", gateway, seconds)
    config["trust"]["authorities"]["second"] = {"keys": ["second.pub"], "tlog": "none"}
    config["trust"]["policies"]["bench"]["require"]["any_of"] = ["release", "second"]
    os.makedirs(f"{settings.work}/second", exist_ok=True)
    os.replace(artifacts.Signer(f"{settings.work}/second").public, f"{settings.work}/second.pub")
    phase(report, "re-verification and polls", gateway, settings.number("REVERIFYING", 15, 5),
          lambda: artifacts.replace(f"{settings.work}/background.yaml", json.dumps(config).encode()))
    gateway.stop()
    without(settings, report, registry, seconds)
    registry.stop()


def without(settings, report, registry, seconds):
    config = registry_config(registry, [("bundle-0", "team/bundle-0", "30s")])
    gateway = servers.Gateway(settings.program, settings.work, "without", config)
    gateway.await_bundle("bundle-0")
    phase(report, "without", gateway, seconds)
    gateway.stop()


VERIFICATIONS = r"bundlegate_verifications_total\{[^}]*\}"


def phase(report, name, gateway, seconds, change=None):
    """Measures for some seconds, after `change`."""
    tag = servers.request(gateway.data, "/bundles/bundle-0")[1]["ETag"]
    verified = gateway.metric(VERIFICATIONS)
    bystander = crowd.Bystander(gateway.data, "/bundles/bundle-0", [f"If-None-Match: {tag}"])
    # Rendering the metrics of thousands of bundles takes CPU of the process.
    time.sleep(1)
    bystander.latencies()
    before = gateway.cpu()
    if change:
        change()
    time.sleep(seconds)
    cpu = gateway.cpu_since(before)
    taken = [1000 * one for one in bystander.latencies()]
    bystander.end()
    report.row(name, seconds, len(taken), *(f"{percentile(taken, share):.2f}" for share in (0.5, 0.99, 0.999)),
               f"{taken[-1]:.2f}", f"{100 * cpu / seconds:.1f}", f"{gateway.metric(VERIFICATIONS) - verified:.0f}")


def script(settings, report, name, title, **variables):
    """Runs another script of this folder on all cores, and quotes its output."""
    environment = {**os.environ, "BUNDLEGATE": settings.program, **variables}
    done = subprocess.run(host.on_core(host.ALL_CORES, f"{host.ROOT}/bench/{name}"), env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    report.quote(title, done.stdout)
    if done.returncode != 0:
        host.die(f"bench/{name} failed")
