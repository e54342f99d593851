"""304s beside the status reports of OPAs."""
import json

from lib import crowd, fleet_view, servers
from lib.report import median, percentile

BUNDLE = "/bundles/bundle-0"
# The size of what OPA 1.22 sends with `status.prometheus`, all but 3 kB of it metrics.
REPORT_BYTES = 60_000
METRIC_BYTES = 57_000
# Polls a second of the clients that report, beside any number of reports.
REPORTER_POLLS = 200
OUTCOMES = ("accepted", "unmatched", "oversized", "malformed", "incomplete", "dropped")
TIME = "2026-11-28T19:00:19.618651052Z"


def metrics_of(size):
    """`metrics` of a report, of about so many bytes."""
    families, length, number = {}, 0, 0
    while length < size:
        name = f"go_cpu_classes_example_{number}_cpu_seconds_total"
        families[name] = {"name": name, "help": "Estimated total CPU time spent performing tasks of this class. This "
                          "metric is an overestimate, and not directly comparable to system CPU time measurements.",
                          "type": "COUNTER", "unit": "cpu_seconds",
                          "metric": [{"counter": {"value": number / 7, "createdTimestamp": TIME}}]}
        length += len(json.dumps(families[name])) + len(name) + 6
        number += 1
    return {"prometheus": families}


def report_parts(revision, size):
    """(start, rest) of a report, where the start has NAME for the client."""
    labels = {"app": "shop", "id": "45da53b8-dbeb-4d18-ac82-11eb2a4f0bb6", "pod": "NAME", "region": "eu",
              "version": "1.22.2"}
    bundles = {}
    for number in range(5):
        bundles[f"bundle-{number}"] = {
            "name": f"bundle-{number}", "active_revision": revision if number == 0 else f"r{number}",
            "last_successful_activation": TIME, "type": "snapshot", "size": size, "last_successful_download": TIME,
            "last_successful_request": TIME, "last_request": TIME,
            "metrics": {"timer_bundle_request_ns": 8088750, "timer_rego_load_bundles_ns": 7122427,
                        "timer_rego_module_compile_ns": 507423, "timer_rego_module_parse_ns": 1041036}}
    start = json.dumps({"labels": labels, "bundles": bundles})[:-1]
    rest = json.dumps({"metrics": metrics_of(METRIC_BYTES)})[1:]
    padding = REPORT_BYTES - len(start) - len(rest) - len(fleet_view.client_name(0)) + len("NAME") - 2
    # Space between tokens, so that the size is exact.
    return start + "," + " " * max(0, padding), rest


class Side:
    """A gateway with its reporters and those whose 304s are timed."""

    def __init__(self, settings, name, polls, status):
        self.gateway, self.polls = fleet_view.start(settings, 5, name, fleet={"status": status}), polls
        _, headers, body = servers.request(self.gateway.data, BUNDLE)
        start, rest = report_parts("r0", len(body))
        reporters = settings.number("REPORTERS", 2000, 200)
        names = [fleet_view.client_name(number) for number in range(reporters)]
        self.reporters = self.clients(names, 200, headers["ETag"], False, start, rest)
        self.timed = self.clients([f"timed-{number}" for number in range(50)], 50, headers["ETag"], True)

    def clients(self, names, connections, tag, realtime, labels="", tail=""):
        program = crowd.Program("paced_clients.py", {
            "host": self.gateway.data[0], "port": self.gateway.data[1], "header": fleet_view.IDENTITY, "names": names,
            "connections": connections, "path": BUNDLE, "tag": tag, "realtime": realtime, "labels": labels,
            "tail": tail})
        program.read()
        return program

    def counted(self):
        return {name: self.gateway.metric(rf'bundlegate_fleet_reports_total\{{outcome="{name}"\}}')
                for name in OUTCOMES}

    def run(self, rate, seconds):
        """One measurement beside so many reports a second."""
        before, cpu, waited = self.counted(), self.gateway.cpu(), self.gateway.waited()
        self.reporters.write({"polls": REPORTER_POLLS, "reports": rate, "seconds": seconds})
        self.timed.write({"polls": self.polls, "reports": 0, "seconds": seconds})
        timed, reporters = self.timed.read(), self.reporters.read()
        cpu, waited = self.gateway.cpu_since(cpu), self.gateway.waited_since(waited)
        after = self.counted()
        slow = [1000 * one for one in timed["polls"]]
        return {"p50": percentile(slow, 0.5), "p99": percentile(slow, 0.99), "slowest": slow[-1],
                "answered": len(reporters["reports"]) / seconds,
                "cpu": 100 * cpu / seconds, "waited": 100 * waited / seconds,
                "rss": self.gateway.memory()[0] * 1.024 / 1000,
                "late": reporters["late"] + timed["late"],
                "broken": reporters["broken"] + timed["broken"],
                "unanswered": reporters["unanswered"] + timed["unanswered"],
                "outcomes": {name: after[name] - before[name] for name in OUTCOMES if after[name] > before[name]}}

    def end(self):
        self.reporters.end()
        self.timed.end()
        self.gateway.stop()


def measure(settings):
    """Prints a table: each rate of reports beside none, in alternating rounds."""
    rounds, seconds = settings.number("ROUNDS", 3, 1), settings.number("SECONDS_EACH", 10, 2)
    polls = settings.number("POLLS", 1000)
    sides = {2000: Side(settings, "reports", polls, {}), 200: Side(settings, "limited", polls, {"rate": 200})}
    cases = [(0, 2000), (200, 2000), (2000, 2000), (2000, 200)]
    found = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            rate, limit = case
            found[case].append(sides[limit].run(rate, seconds))
    size = REPORT_BYTES / 1000
    print(f"{polls} timed 304s a second; {size:.0f} kB a report, of clients that also poll {REPORTER_POLLS} times a "
          f"second; medians of {rounds} rounds of {seconds} s. Waited: the time in which the gateway "
          f"was ready to run and did not, which is other load on its core")
    print(f"{'reports/s':>9} {'rate':>5} {'answered/s':>10} {'304: p50 ms':>11} {'p99 ms':>7} {'× p99 of 0':>10} "
          f"{'slowest ms':>10} {'CPU %':>6} {'waited %':>8} {'RSS MB':>7} {'counted in all'}")
    for case in cases:
        show(case, found[case], found[cases[0]])
    for side in sides.values():
        side.end()


def show(case, runs, without):
    middle = lambda name: median(run[name] for run in runs)
    total = lambda name: sum(run[name] for run in runs)
    # Of the same round, because the speed of a machine drifts.
    ratio = median(run["p99"] / none["p99"] for run, none in zip(runs, without))
    outcomes = {name: sum(run["outcomes"].get(name, 0) for run in runs) for name in OUTCOMES}
    counted = [f"{count:.0f} {name}" for name, count in outcomes.items() if count]
    counted += [f"{total(name)} {text}" for name, text in
                (("late", "not sent"), ("broken", "connections closed"), ("unanswered", "requests unanswered"))
                if total(name)]
    print(f"{case[0]:>9} {case[1]:>5} {middle('answered'):>10.0f} {middle('p50'):>11.2f} {middle('p99'):>7.2f} "
          f"{ratio:>10.2f} {max(run['slowest'] for run in runs):>10.2f} {middle('cpu'):>6.1f} "
          f"{middle('waited'):>8.1f} "
          f"{max(run['rss'] for run in runs):>7.1f} {', '.join(counted)}", flush=True)
