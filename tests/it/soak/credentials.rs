//! An hour of tokens that live for five seconds, of passwords that are rotated, and of helpers and
//! token servers that fail.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    HOUR,
    clock::{compressed, panics},
    schedule::Push,
    world::{Options, World},
};
use crate::{
    access::{Access, Refusal, Scheme},
    credentials::{REFUSALS, Store, Stored},
    faulty::{Fault, FaultyRegistry},
    quirks::faults::Signed,
};

const LIFETIME: Duration = Duration::from_secs(5);
/// A token counts as expired when a fifth of its lifetime is left, and is used for at least half of
/// the time before. Three bundles that shared none would need three times as many.
const MIN_USE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_secs(2);
/// A new version arrives this soon after credentials and servers work again: refused credentials
/// are not sent for 10 s, and the check after a refusal comes after four intervals.
const ARRIVAL: Duration = Duration::from_secs(60);
/// The time without trouble in each quarter of the hour.
const CALM: Duration = Duration::from_secs(700);
const WORKS: &str = "cat \"${0%/*}/answer\"";

/// Lets no time pass while a helper runs that is not said to hang.
#[derive(Debug, Clone, Default)]
struct HelperClock {
    hangs: Arc<AtomicBool>,
}

impl HelperClock {
    fn wait(&self) {
        // A helper runs from the moment at which it has been started: the runtime waits for its
        // `exec`.
        while !self.hangs.load(Ordering::Relaxed) && is_running() {
            thread::park_timeout(Duration::from_micros(200));
        }
    }
}

/// Whether a child of this thread runs, and has not just ended.
fn is_running() -> bool {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    children.split_whitespace().any(|child| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.trim().chars().next());
        state.is_some_and(|state| state != 'Z')
    })
}

/// A quarter of an hour with credentials from one place.
struct Quarter<'a> {
    world: &'a mut World,
    store: &'a Store,
    stored: Stored,
    clock: &'a HelperClock,
    passwords: &'a mut usize,
}

impl Quarter<'_> {
    async fn run(&mut self) -> Result<(), String> {
        for refusal in REFUSALS {
            for late in [Duration::ZERO, Duration::from_secs(15)] {
                self.rotate(refusal, late).await?;
            }
        }
        for fault in [
            Fault::Status(503, vec![]),
            Fault::Status(429, vec![("retry-after", "10".into())]),
            Fault::Stall,
            Fault::Replace(r#"{"token": ""}"#.into()),
        ] {
            self.token_server_fails(fault).await?;
        }
        if self.stored == Stored::Helper {
            for script in ["echo locked >&2; sleep 1000", "echo no network; exit 1"] {
                self.helper_fails(script).await?;
            }
        }
        self.is_calm().await
    }

    /// The password changes at the registry, and `late` where the gateway reads it.
    async fn rotate(&mut self, refusal: Refusal, late: Duration) -> Result<(), String> {
        let password = self.new_password(refusal);
        self.push();
        sleep(late).await;
        self.store.rotate(&password);
        self.arrives(&format!("{:?} {refusal:?} after {late:?}", self.stored))
            .await
    }

    fn new_password(&mut self, refusal: Refusal) -> String {
        *self.passwords += 1;
        let password = format!("robot:{}", self.passwords);
        self.world.registry.access(|access| {
            access.refusal = refusal;
            access.rotate(&password);
        });
        password
    }

    async fn token_server_fails(&mut self, fault: Fault) -> Result<(), String> {
        let what = format!("{:?} token server: {fault:?}", self.stored);
        self.world.registry.fail("/token", usize::MAX, fault);
        sleep(Duration::from_secs(10)).await;
        self.push();
        sleep(Duration::from_secs(10)).await;
        self.world.registry.heal();
        self.arrives(&what).await
    }

    /// The password is rotated while the helper fails.
    async fn helper_fails(&mut self, script: &str) -> Result<(), String> {
        self.clock.hangs.store(true, Ordering::Relaxed);
        self.store.helper(script);
        let password = self.new_password(REFUSALS[0]);
        self.push();
        sleep(Duration::from_secs(30)).await;
        self.store.helper(WORKS);
        self.store.rotate(&password);
        // One that hangs is killed after three seconds.
        sleep(Duration::from_secs(5)).await;
        self.clock.hangs.store(false, Ordering::Relaxed);
        self.arrives(script).await
    }

    /// Without trouble, all bundles together need one token for its lifetime.
    async fn is_calm(&mut self) -> Result<(), String> {
        let tokens = |world: &World| world.registry.asked("/token").len();
        let before = tokens(self.world);
        sleep(CALM).await;
        let tokens = tokens(self.world) - before;
        let most = CALM.as_secs() / MIN_USE.as_secs();
        println!(
            "{:?}: {tokens} tokens in {CALM:?}, at most {most}",
            self.stored
        );
        if tokens as u64 > most || tokens < 100 {
            return Err(format!("{tokens} tokens in {CALM:?}"));
        }
        self.world.shared.verdict()
    }

    fn push(&mut self) {
        self.world
            .push(*self.passwords % 3, Push::Good, Signed::Legacy);
    }

    async fn arrives(&mut self, what: &str) -> Result<(), String> {
        let arrived = self.world.recover(ARRIVAL).await;
        arrived.map_err(|error| format!("{what}: {error}"))
    }
}

async fn hour(clock: HelperClock) -> Result<(), String> {
    let registry = FaultyRegistry::start().await;
    registry.protect(Access::new(Scheme::Bearer, "robot:0"));
    registry.access(|access| {
        access.expires_in = Some(LIFETIME.as_secs().into());
        access.lifetime = LIFETIME;
    });
    let mut passwords = 0;
    let mut store = Store::new(Stored::PasswordFile, &registry, "robot:0");
    let options = Options {
        referrers_api: true,
        poll: POLL,
        pause: Duration::from_secs(4),
        credentials: Some(store.credentials()),
    };
    let mut world = World::start(registry, options).await;
    world.recover(ARRIVAL).await?;
    let places = [
        Stored::PasswordFile,
        Stored::DockerConfig,
        Stored::Secret,
        Stored::Helper,
    ];
    for (number, stored) in places.into_iter().cycle().enumerate() {
        if world.shared.elapsed() >= HOUR {
            break;
        }
        if number > 0 {
            // Another configuration.
            store = Store::new(stored, &world.registry, &format!("robot:{passwords}"));
            world.options.credentials = Some(store.credentials());
            world.restart().await;
        }
        let mut quarter = Quarter {
            world: &mut world,
            store: &store,
            stored,
            clock: &clock,
            passwords: &mut passwords,
        };
        quarter.run().await?;
    }
    world.finish().await?;
    let (elapsed, tokens) = (world.shared.elapsed(), world.registry.asked("/token").len());
    println!(
        "{elapsed:?}: {tokens} requests for a token, {passwords} rotations, {} answers, the latest \
         arrival after {:?}",
        world.shared.answers(),
        world.recovery
    );
    // Where tokens are refused or not issued, a check costs one; there are 1.5 of them a second.
    let most = elapsed.as_secs();
    if tokens as u64 > most {
        return Err(format!("{tokens} requests for a token, at most {most}"));
    }
    Ok(())
}

#[test]
fn credentials_that_expire_and_change_for_an_hour_leave_no_gap() {
    let (before, clock) = (panics(), HelperClock::default());
    let idle = clock.clone();
    if let Err(violations) = compressed(move || idle.wait(), hour(clock)) {
        panic!("{violations}");
    }
    assert_eq!(panics(), before);
}
