"""The servers that are measured: bundlegate, nginx (with nchan), lighttpd, and CNCF distribution.

All listen on loopback ports, run on the server core with one worker, and are stopped by `stop_all`.
"""
import http.client, json, os, re, socket, ssl, subprocess, time

from lib import host
from lib.artifacts import write

NCHAN = "/usr/lib/nginx/modules/ngx_nchan_module.so"
running = []


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def insecure_tls():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def make_certificate(folder):
    """tls.crt and tls.key: ECDSA P-256, for 127.0.0.1."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"], check=True, capture_output=True)


def offer_cipher_suites_as_opa(folder):
    """Has the TLS clients of this process and its children offer AES-128 first, as Go's client does on a machine
    with AES instructions. OpenSSL offers AES-256 first, and servers follow their clients."""
    write(f"{folder}/openssl.cnf", b"""openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = clients
[clients]
Ciphersuites = TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
""")
    os.environ["OPENSSL_CONF"] = f"{folder}/openssl.cnf"


def request(address, path, headers=None, scheme="http", method="GET", body=None):
    """(status, headers, body) of one request on a connection of its own."""
    if scheme == "https":
        connection = http.client.HTTPSConnection(*address, context=insecure_tls(), timeout=60)
    else:
        connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


class Server:
    """A process with its workers; its log is a file."""

    def __init__(self, name, log, command, core=host.SERVER_CORE, **options):
        self.name, self.log = name, log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(host.on_core(core, *command), stdout=file, stderr=file, **options)
        running.append(self)

    def pids(self):
        main = self.process.pid
        try:
            workers = open(f"/proc/{main}/task/{main}/children").read().split()
        except OSError:
            workers = []
        return [main, *map(int, workers)]

    def cpu(self):
        """Nanoseconds of CPU by task, for `cpu_since`."""
        return self.schedstat(0)

    def waited(self):
        """Nanoseconds by task in which it was ready and other tasks had the core, for `waited_since`."""
        return self.schedstat(1)

    def schedstat(self, field):
        spent = {}
        for pid in self.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                try:
                    spent[task] = int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[field])
                except OSError:
                    pass  # The thread has ended.
        return spent

    def cpu_since(self, before):
        """Seconds of CPU since `before`, without threads that have ended."""
        return seconds_between(before, self.cpu())

    def waited_since(self, before):
        """Seconds of waiting for the core since `before`, without threads that have ended."""
        return seconds_between(before, self.waited())

    def memory(self):
        """(RSS, PSS) in kB of 1024 bytes."""
        rss = pss = 0
        for pid in self.pids():
            text = open(f"/proc/{pid}/smaps_rollup").read()
            rss += int(re.search(r"^Rss:\s+(\d+)", text, re.M).group(1))
            pss += int(re.search(r"^Pss:\s+(\d+)", text, re.M).group(1))
        return rss, pss

    def tail(self):
        return open(self.log, errors="replace").read()[-2000:]

    def await_line(self, pattern, seconds=300):
        """The match of a pattern in the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, open(self.log, errors="replace").read())
            if found:
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        host.die(f"{self.name} did not start: {self.tail()}")

    def await_status(self, address, path, scheme="http", status=200, seconds=300):
        """Waits until a request is answered with this status."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end and self.process.poll() is None:
            try:
                last = request(address, path, scheme=scheme)[0]
            except OSError as error:
                last = error
            if last == status:
                return
            time.sleep(0.05)
        host.die(f"{self.name} does not answer {path} with {status} but with {last}: {self.tail()}")

    def stop(self):
        if self in running:
            running.remove(self)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                # bundlegate drains for some seconds while clients are connected.
                self.process.kill()
                self.process.wait()


def seconds_between(before, after):
    return sum(now - before.get(task, 0) for task, now in after.items()) / 1e9


def interrupt(*_):
    """A signal handler, so that what runs is stopped on SIGTERM as on SIGINT."""
    raise KeyboardInterrupt


def stop_all():
    for server in list(running):
        server.stop()


class Gateway(Server):
    """`bundlegate serve` with a configuration file in `work`; `scheme` is that of the data listener, and
    `prefix` a command that runs it."""

    def __init__(self, program, work, name, config, scheme="http", prefix=()):
        self.scheme, self.began = scheme, time.monotonic()
        path, self.left_out = write_config(program, work, name, config, scheme)
        environment = {**os.environ, "BUNDLEGATE_LOG": "warn,bundlegate::server=info"}
        super().__init__("bundlegate", f"{work}/logs/{name}.log", [*prefix, program, "serve", "--config", path],
                         env=environment)
        self.data, self.admin = self.address("data"), self.address("admin")

    def address(self, listener):
        line = self.await_line(f'.*"listener":"{listener}".*').group(0)
        found = re.search(r'"address":"([^"]+):(\d+)"', line)
        return found.group(1), int(found.group(2))

    def await_bundle(self, name):
        self.await_status(self.data, f"/bundles/{name}", self.scheme)

    def metric(self, pattern):
        """The sum of the metrics whose name and labels match."""
        text = request(self.admin, "/metrics")[2].decode()
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.M))

    def serving(self):
        return self.metric(r'bundlegate_bundle_state\{[^}]*state="serving"\}')


def base_config(bundles, **more):
    """A configuration that serves these bundles unsigned to everyone."""
    config = {"version": 1, "server": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"},
              "clients": [{"name": "anyone", "anonymous": True, "bundles": ["**"]}],
              "trust": {"policies": {"bench": "unsigned"}}, "bundles": bundles}
    config["server"].update(more.pop("server", {}))
    return {**config, **more}


def layout_bundles(names):
    """Bundles whose references are the layouts `layout-NAME` beside the configuration file."""
    return {name: {"reference": f"oci-layout:layout-{name}", "trust": "bench", "poll": "1h"} for name in names}


def write_config(program, work, name, config, scheme):
    """(path, refusal): writes NAME.yaml, without `long_poll` if this binary refuses a key in it."""
    if scheme == "https":
        config["server"]["tls"] = {"certificate": "tls.crt", "key": "tls.key"}
    path, refusal = f"{work}/{name}.yaml", None
    write(path, json.dumps(config).encode())
    if config.get("long_poll"):
        checked = subprocess.run([program, "config", "check", path], capture_output=True, text=True)
        if checked.returncode != 0 and "long_poll" in checked.stderr:
            refusal = checked.stderr.strip()
            write(path, json.dumps({key: config[key] for key in config if key != "long_poll"}).encode())
    return path, refusal


class Nginx(Server):
    """nginx with one worker over `work`/www, plain and with open_file_cache ("+ofc")."""

    def __init__(self, work):
        self.plain, self.tls, self.http2, self.cached = ((("127.0.0.1", free_port())) for _ in range(4))
        write(f"{work}/nginx.conf", nginx_conf(work, f"""
  root {work}/www;
  server {{ listen 127.0.0.1:{self.plain[1]} {BACKLOG}; listen 127.0.0.1:{self.tls[1]} ssl {BACKLOG}; }}
  server {{ listen 127.0.0.1:{self.http2[1]} ssl http2; }}
  server {{
    listen 127.0.0.1:{self.cached[1]};
    open_file_cache max=100 inactive=10m;
    open_file_cache_valid 10m;
  }}
""").encode())
        super().__init__("nginx", f"{work}/logs/nginx.log",
                         [host.program("nginx"), "-e", "stderr", "-c", f"{work}/nginx.conf"])


class Nchan(Server):
    """nginx with nchan: a channel at /sub for long polls, and /pub, where a POST publishes."""

    def __init__(self, work):
        self.plain, self.tls, self.publisher = ((("127.0.0.1", free_port())) for _ in range(3))
        subscriber = ("location = /sub { nchan_subscriber longpoll; nchan_channel_id bench; "
                      "nchan_subscriber_first_message newest; nchan_store_messages off; }")
        write(f"{work}/nchan.conf", nginx_conf(work, f"""
  nchan_shared_memory_size 512m;
  server {{ listen 127.0.0.1:{self.plain[1]} {BACKLOG}; listen 127.0.0.1:{self.tls[1]} ssl {BACKLOG}; {subscriber} }}
  server {{ listen 127.0.0.1:{self.publisher[1]};
    location = /pub {{ nchan_publisher; nchan_channel_id bench; nchan_store_messages off; }} }}
""", f"load_module {NCHAN};").encode())
        super().__init__("nchan", f"{work}/logs/nchan.log",
                         [host.program("nginx"), "-e", "stderr", "-c", f"{work}/nchan.conf"])

    def publish(self, body):
        request(self.publisher, "/pub", method="POST", body=body)


BACKLOG = "backlog=16384"


def nginx_conf(work, servers, modules=""):
    # Started as root, nginx would run its worker as a user that can't read the temporary folder.
    user = "user root;" if os.getuid() == 0 else ""
    paths = "\n".join(f"  {kind}_temp_path {work}/nginx-{kind};" for kind in
                      ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""{modules}
{user}
daemon off;
worker_processes 1;
pid {work}/nginx-{free_port()}.pid;
error_log stderr error;
events {{ worker_connections {host.raise_open_files() - 200}; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  default_type application/vnd.openpolicyagent.bundles;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
{paths}
  ssl_certificate {work}/tls.crt;
  ssl_certificate_key {work}/tls.key;
  ssl_protocols TLSv1.3;
{servers}}}
"""


class Lighttpd(Server):
    """lighttpd with one worker over `work`/www, in cleartext."""

    def __init__(self, work):
        self.plain = ("127.0.0.1", free_port())
        write(f"{work}/lighttpd.conf", f"""
server.document-root = "{work}/www"
server.bind = "127.0.0.1"
server.port = {self.plain[1]}
server.max-keep-alive-requests = 1000000000
server.max-keep-alive-idle = 600
server.max-fds = 4096
mimetype.assign = ( "" => "application/vnd.openpolicyagent.bundles" )
""".encode())
        super().__init__("lighttpd", f"{work}/logs/lighttpd.log",
                         [host.program("lighttpd"), "-D", "-f", f"{work}/lighttpd.conf"])


class Registry(Server):
    """CNCF distribution over `work`/storage; it runs on the client core unless told otherwise."""

    def __init__(self, work, core=host.CLIENT_CORE):
        self.storage = f"{work}/storage"
        write(f"{work}/registry.yml", f"""version: 0.1
log: {{ level: info, formatter: json }}
storage: {{ filesystem: {{ rootdirectory: {self.storage} }} }}
http: {{ addr: "127.0.0.1:0", secret: bench }}
""".encode())
        super().__init__("the registry", f"{work}/logs/registry.log",
                         [host.program("registry-3"), "serve", f"{work}/registry.yml"], core)
        self.host = self.await_line(r"listening on ([0-9.:]+)").group(1)

    def requests(self):
        """(method, path) of each request so far."""
        found = []
        for line in open(self.log, errors="replace"):
            if '"response completed"' in line:
                entry = json.loads(line)
                found.append((entry["http.request.method"], entry["http.request.uri"]))
        return found
