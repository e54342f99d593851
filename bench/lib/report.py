"""Tables of results: printed row by row, and written to a Markdown file after each section."""
import os, statistics, time

from lib import host


def median(values):
    return statistics.median(list(values))


def percentile(ascending, share):
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)]


class Report:
    """The result file starts with the machine, the commit and the versions of the peers."""

    def __init__(self, path, program):
        self.path, self.sections = path, []
        self.head = [
            "# Results of bench/run", "",
            f"- {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, commit {host.commit()}, "
            f"{host.output(program, 'version').splitlines()[0]}",
            f"- {host.cpu_model()}, {os.cpu_count()} cores, {host.memory_gib():.0f} GiB, Linux {os.uname().release}",
            f"- servers on core {host.SERVER_CORE}, clients and registry on core {host.CLIENT_CORE}; at most "
            f"{host.raise_open_files()} open files for a process; load average {os.getloadavg()[0]:.1f} at the start",
            "- " + ", ".join(f"{name} {version}" for name, version in host.peer_versions().items()), "",
            "Medians of interleaved rounds. \"× nginx\" is the throughput as a multiple of that of nginx in the "
            "same round; \"CPU × nginx\" is nginx's CPU time for one answer, divided by bundlegate's: above 1, "
            "bundlegate is cheaper. Only the ratios are comparable between runs.", ""]
        print("\n".join(self.head), flush=True)

    def section(self, title, columns, note=""):
        self.sections.append(["", f"## {title}", ""] + ([note, ""] if note else []) +
                             ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)])
        print("\n".join(self.sections[-1]), flush=True)

    def row(self, *cells):
        self.line("| " + " | ".join(map(str, cells)) + " |")

    def line(self, text):
        """A row, or text below the table."""
        self.sections[-1].append(text)
        print(text, flush=True)
        self.save()

    def quote(self, title, text):
        """A section with the output of another program."""
        self.sections.append(["", f"## {title}", "", "```", *text.rstrip().splitlines(), "```"])
        print("\n".join(self.sections[-1]), flush=True)
        self.save()

    def save(self):
        if self.path:
            lines = self.head + [line for section in self.sections for line in section]
            with open(self.path, "w") as file:
                file.write("\n".join(lines).replace("\n\n\n", "\n\n") + "\n")
