"""The machine: cores, the limit of open files, programs and their versions."""
import os, re, resource, shutil, subprocess, sys

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
SERVER_CORE = int(os.environ.get("SERVER_CORE", "0"))
CLIENT_CORE = int(os.environ.get("CLIENT_CORE", "1"))
ALL_CORES = f"0-{os.cpu_count() - 1}"


def die(text):
    sys.exit(f"{os.path.relpath(os.path.abspath(sys.argv[0]), ROOT)}: {text}")


def program(name):
    """The path of an installed program, those of tests/peers/install first."""
    peers = os.environ.get("BUNDLEGATE_PEERS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bundlegate-peers")
    found = shutil.which(name, path=f"{peers}/bin:{os.environ['PATH']}:/usr/sbin:/sbin")
    return found or die(f"{name} is not installed; run tests/peers/install")


def binary(*flags):
    """The binary in BUNDLEGATE, or a new release build with these flags of cargo."""
    if "BUNDLEGATE" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "--features", "jemalloc", "--bin",
                        "bundlegate", *flags], cwd=ROOT, check=True)
        target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
        return os.path.join(target, "release", "bundlegate")
    path = os.path.abspath(os.environ["BUNDLEGATE"])
    return path if os.access(path, os.X_OK) else die(f"{path} is not executable")


def on_core(core, *command):
    """The command, pinned to a core or a list of cores."""
    return ["taskset", "-c", str(core), *map(str, command)]


def pin_to_client_core():
    """Pins this process, and with it every program that it starts without `on_core`."""
    if os.cpu_count() < 2:
        die("needs two cores, one for the servers and one for the clients")
    os.sched_setaffinity(0, {CLIENT_CORE})


def raise_open_files():
    """Raises the soft limit of open files, which bounds the connections of a process, and returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def output(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()


def cpu_model():
    found = re.search(r"^model name\s*: (.*)$", open("/proc/cpuinfo").read(), re.M)
    return found.group(1) if found else os.uname().machine


def commit():
    """The commit of the working tree, marked if files differ from it."""
    head = output("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD")
    changed = output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no")
    return f"{head} with uncommitted changes" if changed else head


def first_version(*command):
    """The first version number that a command prints, or "absent" if the program is not installed."""
    try:
        text = output(program(command[0]), *command[1:])
    except SystemExit:
        return "absent"
    found = re.search(r"\d+(\.\d+)+[-+.\w]*", text)
    return found.group(0) if found else "unknown"


def peer_versions():
    # The web servers and load generators are Debian's, the other programs those of tests/peers/install.
    return {"nginx": first_version("nginx", "-v"), "nchan": debian_version("libnginx-mod-nchan"),
            "lighttpd": first_version("lighttpd", "-v"), "wrk": first_version("wrk", "-v"),
            "h2load": first_version("h2load", "--version"), "OpenSSL": first_version("openssl", "version"),
            "opa": first_version("opa", "version"), "oras": first_version("oras", "version"),
            "cosign": first_version("cosign", "version"), "distribution": first_version("registry-3", "--version")}


def debian_version(package):
    found = output("dpkg-query", "-W", "-f", "${Version}", package)
    return found if re.match(r"[\d:.]+[-+.~\w]*$", found) else "absent"


def memory_gib():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
