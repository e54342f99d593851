//! Pacing under paused time.

use std::future::poll_fn;

use tokio::task::JoinSet;

use super::*;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What was sent, and when.
type Sent = Vec<(Instant, u64)>;

fn pacer(bandwidth: u64, spread: Duration) -> Arc<Pacer> {
    let delayed = IntGauge::new("delayed", "Delayed requests.").unwrap();
    Arc::new(Pacer::new(NonZeroU64::new(bandwidth), spread, delayed))
}

/// The body of a request without a version that is answered at once.
fn body(bytes: u64, wait: Duration) -> Body {
    Body {
        bytes,
        is_update: false,
        was_held: false,
        deadline: Instant::now() + wait,
        earliest: None,
    }
}

async fn send(pacer: &Pacer, body: Body) -> (Instant, u64) {
    let mut admission = Admission::default();
    while !admission.admits(pacer, Some(body)) {
        granted(&mut admission).await;
    }
    (Instant::now(), body.bytes)
}

async fn granted(admission: &mut Admission) {
    poll_fn(|context| admission.poll_granted(context)).await;
}

/// Sends all bodies, each in a task of its own, and returns when each was sent, in this order.
async fn send_all(pacer: &Arc<Pacer>, bodies: impl IntoIterator<Item = Body>) -> Sent {
    let mut tasks = JoinSet::new();
    for body in bodies {
        let pacer = Arc::clone(pacer);
        tasks.spawn(async move { send(&pacer, body).await });
    }
    let mut sent = tasks.join_all().await;
    sent.sort_unstable();
    sent
}

/// The most bytes that are beyond the bandwidth in any period.
fn excess(sent: &Sent, bandwidth: u64) -> f64 {
    let (mut level, mut last, mut most) = (0.0_f64, sent[0].0, 0.0_f64);
    for (time, bytes) in sent {
        let passed = time.duration_since(last).as_secs_f64();
        level = (level - passed * bandwidth as f64).max(0.0) + *bytes as f64;
        (last, most) = (*time, most.max(level));
    }
    most
}

#[tokio::test(start_paused = true)]
async fn without_bandwidth_and_spread_every_body_is_sent_at_once() {
    let pacer = pacer(0, Duration::ZERO);
    for was_held in [false, true] {
        let body = Body {
            was_held,
            ..body(u64::MAX, HOUR)
        };
        assert!(pacer.delay(body).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_requests_use_the_bandwidth_and_no_more() {
    const BYTES: u64 = 20_000;
    const BANDWIDTH: u64 = 10 * MIB;
    // A stampede after a restart, and a fan-out to clients that were held.
    for (is_update, was_held) in [(false, false), (true, true)] {
        let (pacer, began) = (pacer(BANDWIDTH, Duration::ZERO), Instant::now());
        let body = Body {
            is_update,
            was_held,
            ..body(BYTES, HOUR)
        };
        let sent = send_all(&pacer, (0..10_000).map(|_| body)).await;
        let limit = BANDWIDTH as f64 * BURST.as_secs_f64() + BYTES as f64;
        assert!(excess(&sent, BANDWIDTH) <= limit);
        let took = sent[9_999].0 - began + BURST;
        let ideal = Duration::from_secs_f64(10_000.0 * BYTES as f64 / BANDWIDTH as f64);
        assert!(took.abs_diff(ideal) < SECOND / 100, "{took:?} {ideal:?}");
        assert_eq!(pacer.delayed.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_larger_than_the_burst_are_sent_at_the_bandwidth_too() {
    let (pacer, began) = (pacer(MIB, Duration::ZERO), Instant::now());
    let sent = send_all(&pacer, (0..5).map(|_| body(10 * MIB, HOUR))).await;
    let times = sent
        .iter()
        .map(|(time, _)| (*time - began + BURST).as_secs());
    assert_eq!(times.collect::<Vec<_>>(), [0, 10, 20, 30, 40]);
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave_take_no_bandwidth() {
    let (pacer, began) = (pacer(MIB, Duration::ZERO), Instant::now());
    let mut waiting = Vec::new();
    for number in 0..1_000 {
        let pacer = Arc::clone(&pacer);
        let body = Body {
            is_update: number % 2 == 0,
            ..body(MIB, HOUR)
        };
        waiting.push(tokio::spawn(async move { send(&pacer, body).await }));
    }
    sleep(SECOND / 2).await;
    assert_eq!(pacer.delayed.get(), 999);
    // Also the client whose turn is next.
    for leaving in &waiting[1..990] {
        leaving.abort();
    }
    let mut sent = Vec::new();
    for request in waiting {
        sent.extend(request.await.ok());
    }
    assert_eq!(sent.len(), 11);
    let last = sent.iter().map(|(time, _)| *time).max().unwrap();
    assert_eq!((last - began + BURST).as_secs(), 10);
    let link = &pacer.link;
    let left = [link.queued.bytes(), link.queued_updates.bytes()];
    assert_eq!((left, pacer.delayed.get()), ([0, 0], 0));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_not_used_passes_to_the_next_request() {
    let pacer = pacer(MIB, Duration::ZERO);
    send(&pacer, body(MIB, HOUR)).await;
    let (mut first, mut second) = (Admission::default(), Admission::default());
    assert!(!first.admits(&pacer, Some(body(MIB, HOUR))));
    granted(&mut first).await;
    let now = Instant::now();
    assert!(!second.admits(&pacer, Some(body(MIB, HOUR))));
    // The bundle was withdrawn meanwhile.
    assert!(first.admits(&pacer, None));
    granted(&mut second).await;
    // The newest version counts, not the one at the time of the request.
    assert!(second.admits(&pacer, Some(body(5 * MIB, HOUR))));
    let next = send(&pacer, body(MIB, HOUR)).await.0;
    assert_eq!((next - now + BURST).as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_runs_nothing_waits_for_one_update_at_most() {
    let (pacer, began) = (pacer(MIB, Duration::ZERO), Instant::now());
    let update = Body {
        is_update: true,
        ..body(MIB, HOUR)
    };
    let updates = {
        let pacer = Arc::clone(&pacer);
        tokio::spawn(async move { send_all(&pacer, (0..100).map(|_| update)).await })
    };
    sleep(SECOND / 2).await;
    let new = send_all(&pacer, (0..3).map(|_| body(MIB, HOUR))).await;
    let seconds = |sent: &Sent| {
        let times = sent.iter().map(|(time, _)| *time - began + BURST);
        times.map(|time| time.as_secs()).collect::<Vec<_>>()
    };
    assert_eq!(seconds(&new), [2, 3, 4]);
    assert_eq!(seconds(&updates.await.unwrap())[..3], [0, 1, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_bandwidth_that_is_too_small_delays_no_body_beyond_its_deadline() {
    fastrand::seed(19);
    let (pacer, began) = (pacer(MIB, Duration::ZERO), Instant::now());
    let sent = send_all(&pacer, (0..1_000).map(|_| body(MIB, 10 * SECOND))).await;
    let mut seconds = [0_u32; 10];
    for (time, _) in &sent {
        let second = (*time - began).as_millis().saturating_sub(1) / 1_000;
        seconds[second as usize] += 1;
    }
    // At the bandwidth at first, and then no faster than it has to be, without a burst at the end.
    assert!(seconds[..5].iter().all(|sent| *sent <= 2), "{seconds:?}");
    assert!(seconds[5..].iter().all(|sent| *sent < 240), "{seconds:?}");
    // Later bodies do not wait for those that were sent beyond the bandwidth.
    let next = send(&pacer, body(MIB, HOUR)).await.0;
    assert!(next - sent[999].0 <= 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn requests_that_were_held_are_spread_evenly_until_their_deadline() {
    fastrand::seed(19);
    for (wait, last) in [(HOUR, 30_u32), (10 * SECOND, 10)] {
        let (pacer, began) = (pacer(0, 30 * SECOND), Instant::now());
        let held = Body {
            is_update: true,
            was_held: true,
            ..body(MIB, wait)
        };
        let sent = send_all(&pacer, (0..10_000).map(|_| held)).await;
        let mut tenths = [0_u32; 10];
        for (time, _) in &sent {
            let tenth = (*time - began).as_secs_f64() * 10.0 / f64::from(last);
            tenths[(tenth as usize).min(9)] += 1;
        }
        assert!(sent[9_999].0 - began <= last * SECOND);
        assert!(
            tenths.iter().all(|sent| sent.abs_diff(1_000) < 120),
            "{tenths:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_spread_does_not_delay_requests_that_are_answered_at_once() {
    let (pacer, began) = (pacer(MIB, HOUR), Instant::now());
    let sent = send_all(&pacer, (0..5).map(|_| body(MIB, HOUR))).await;
    assert_eq!((sent[4].0 - began + BURST).as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_follow_a_change_of_the_bandwidth() {
    let (pacer, began) = (pacer(MIB, Duration::ZERO), Instant::now());
    let waiting = {
        let pacer = Arc::clone(&pacer);
        tokio::spawn(async move { send_all(&pacer, (0..5).map(|_| body(10 * MIB, HOUR))).await })
    };
    // The first body is sent at once, and takes ten seconds. Of these, five are left.
    sleep(5 * SECOND).await;
    pacer.set(NonZeroU64::new(10 * MIB), Duration::ZERO);
    sleep(SECOND).await;
    pacer.set(None, Duration::ZERO);
    let sent = waiting.await.unwrap();
    let times = sent.iter().map(|(time, _)| (*time - began).as_secs_f64());
    let times: Vec<_> = times.collect();
    assert_eq!(times[0], 0.0);
    // Half a second is left at ten times the bandwidth, of which the burst may be used at once.
    assert!((5.4..5.5).contains(&times[1]), "{times:?}");
    assert!(times[2..].iter().all(|time| *time >= 6.0), "{times:?}");
    assert!(times[2..].iter().all(|time| *time < 6.01), "{times:?}");
    assert!(pacer.is_unlimited() && pacer.delayed.get() == 0);
    pacer.set(NonZeroU64::new(MIB), SECOND);
    let held = Body {
        was_held: true,
        ..body(1, HOUR)
    };
    assert!(pacer.delay(held).is_some(), "the spread counts as well");
}
