//! The metrics of the process that all Prometheus client libraries have, from `/proc`. On other
//! systems than Linux there are none.

use std::{fs, path::Path};

use prometheus::{
    Counter, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use rustix::process::{Resource, getrlimit};

/// The metrics of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Process {
    cpu: Counter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    virtual_memory: IntGauge,
    resident_memory: IntGauge,
    start_time: IntGauge,
    threads: IntGauge,
}

/// The type of the entry in `/proc/PID/auxv` that has the number of clock ticks in a second
/// (`AT_CLKTCK`), see getauxval(3).
const CLOCK_TICKS: usize = 17;

/// What `/proc` has about a process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    /// Seconds in user and system mode.
    cpu: f64,
    threads: i64,
    /// Seconds since 1970.
    start_time: i64,
    virtual_memory: i64,
    resident_memory: i64,
}

impl Process {
    /// The metrics, not yet registered.
    ///
    /// # Errors
    /// Never: their names are valid.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            cpu: Counter::with_opts(Opts::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            ))?,
            open_fds: IntGauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: IntGauge::new(
                "process_max_fds",
                "Maximum number of open file descriptors.",
            )?,
            virtual_memory: IntGauge::new(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            )?,
            resident_memory: IntGauge::new(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            )?,
            start_time: IntGauge::new(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
            threads: IntGauge::new("process_threads", "Number of OS threads in the process.")?,
        })
    }

    fn all(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu,
            &self.open_fds,
            &self.max_fds,
            &self.virtual_memory,
            &self.resident_memory,
            &self.start_time,
            &self.threads,
        ]
    }

    fn update(&self, usage: Usage, open_fds: i64) {
        self.cpu.inc_by((usage.cpu - self.cpu.get()).max(0.0));
        self.open_fds.set(open_fds);
        let max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        self.max_fds.set(i64::try_from(max_fds).unwrap_or(i64::MAX));
        self.virtual_memory.set(usage.virtual_memory);
        self.resident_memory.set(usage.resident_memory);
        self.start_time.set(usage.start_time);
        self.threads.set(usage.threads);
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let all = self.all().into_iter();
        all.flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let own = Path::new("/proc/self");
        let Some((usage, open_fds)) = Usage::of(own).zip(count_entries(&own.join("fd"))) else {
            return Vec::new();
        };
        self.update(usage, open_fds);
        let all = self.all().into_iter();
        all.flat_map(|metric| metric.collect()).collect()
    }
}

impl Usage {
    fn of(folder: &Path) -> Option<Self> {
        let read = |path: &Path| fs::read_to_string(path).ok();
        Self::parse(
            &read(&folder.join("stat"))?,
            &read(&folder.join("status"))?,
            &read(Path::new("/proc/stat"))?,
            auxiliary_value(&fs::read(folder.join("auxv")).ok()?, CLOCK_TICKS)?,
        )
    }

    /// Parses `/proc/PID/stat`, `/proc/PID/status` and `/proc/stat`, see proc(5).
    fn parse(stat: &str, status: &str, system: &str, ticks: u64) -> Option<Self> {
        // The name of the program is in parentheses, and may contain some itself.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // The third field is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let (user, system_time, threads, started) =
            (field(14)?, field(15)?, field(20)?, field(22)?);
        let booted: u64 = line_of(system, "btime ")?.trim().parse().ok()?;
        let kib = |name| {
            let kib = line_of(status, name)?.trim().strip_suffix("kB")?;
            kib.trim().parse::<i64>().ok()?.checked_mul(1024)
        };
        Some(Self {
            cpu: (user + system_time) as f64 / ticks as f64,
            threads: i64::try_from(threads).ok()?,
            start_time: i64::try_from(booted + started.checked_div(ticks)?).ok()?,
            virtual_memory: kib("VmSize:")?,
            resident_memory: kib("VmRSS:")?,
        })
    }
}

/// The value of an entry of the auxiliary vector, which is a list of types and values.
fn auxiliary_value(vector: &[u8], wanted: usize) -> Option<u64> {
    let (words, _) = vector.as_chunks::<{ size_of::<usize>() }>();
    let words: Vec<usize> = words
        .iter()
        .map(|word| usize::from_ne_bytes(*word))
        .collect();
    let entry = words.chunks_exact(2).find(|entry| entry[0] == wanted)?;
    u64::try_from(entry[1]).ok().filter(|value| *value > 0)
}

fn line_of<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(start))
}

fn count_entries(folder: &Path) -> Option<i64> {
    // One of them is that of the folder itself.
    let entries = fs::read_dir(folder).ok()?.count().saturating_sub(1);
    i64::try_from(entries).ok()
}

#[cfg(test)]
mod tests {
    use super::{super::Metrics, *};

    #[test]
    fn the_files_of_proc_are_read_whatever_the_program_is_called() {
        let stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 9 0 12345 \
                    1048576 512 18446744073709551615 1 1 0 0";
        let status = "Name:\ta) b (c\nVmPeak:\t  9 kB\nVmSize:\t    1024 kB\nVmRSS:\t      12 kB\n";
        let system = "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n";
        let expected = Usage {
            cpu: 3.0,
            threads: 9,
            start_time: 1_700_000_123,
            virtual_memory: 1 << 20,
            resident_memory: 12 << 10,
        };
        assert_eq!(Usage::parse(stat, status, system, 100), Some(expected));
        let vector = [3, 9, CLOCK_TICKS, 100, 0, 0]
            .map(usize::to_ne_bytes)
            .concat();
        assert_eq!(auxiliary_value(&vector, CLOCK_TICKS), Some(100));
        assert_eq!(auxiliary_value(&vector[..8], CLOCK_TICKS), None);
        assert_eq!(Usage::parse("", status, system, 100), None);
        assert_eq!(Usage::parse(stat, "", system, 100), None);
        assert_eq!(Usage::parse(stat, status, "", 100), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_metrics_of_this_process_are_plausible_and_follow_it() {
        let metrics = Metrics::new();
        metrics.register(Process::new().unwrap()).unwrap();
        let sample = |name: &str| metrics.sample(name).unwrap();
        let now = crate::telemetry::now().as_second() as f64;
        let started = sample("process_start_time_seconds");
        assert!(started <= now && started > now - 86_400.0, "{started}");
        assert!(sample("process_threads") >= 1.0);
        assert!(sample("process_max_fds") >= sample("process_open_fds"));
        let (resident, all) = (
            sample("process_resident_memory_bytes"),
            sample("process_virtual_memory_bytes"),
        );
        assert!(resident > 1e5 && resident <= all, "{resident} of {all}");
        let before = sample("process_cpu_seconds_total");
        let mut sum = 0_u64;
        while sample("process_cpu_seconds_total") < before + 0.02 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let files: Vec<_> = (0..100)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(sample("process_open_fds") >= files.len() as f64);
    }
}
