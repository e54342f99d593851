//! Checks of passwords, which bcrypt makes slow on purpose: cached, once for all requests with the
//! same credential, and few at a time.
//!
//! Checks run on blocking threads of the background runtime, so that they delay no other request.
//! Guesses are bounded by the time that each takes: [`MAX_RUNNING`] at a time, and at most
//! [`MAX_QUEUED`] that wait, [`MAX_QUEUED_PER_ADDRESS`] of one address. Beyond that a request is
//! answered with 429, not with a 5xx status: a balancer would take a guesser's requests as a sign
//! that the replica is unwell.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use super::{
    clients::Clients,
    credential::{Credential, UserPassword},
    credential_checks::{Check, Identification},
    refusal::Reason,
};
use crate::access::User;

/// Passwords that are checked at a time.
const MAX_RUNNING: usize = 2;
/// Checks that wait, over all addresses.
const MAX_QUEUED: usize = 128;
/// Checks of one address that wait or run. A fleet behind one address has few passwords.
const MAX_QUEUED_PER_ADDRESS: usize = 16;
/// How long a check waits for its turn. OPA gives up after 10 s.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Right passwords that are remembered, about 100 bytes each.
const MAX_VERIFIED: u64 = 1 << 14;
/// How long a right password is remembered without a request.
const VERIFIED_IDLE: Duration = Duration::from_secs(3600);
/// Results of either kind that are remembered for [`RESULT_LIFETIME`].
const MAX_RESULTS: u64 = 1 << 12;
/// How long a wrong password is remembered: a client that polls with one costs a check a minute.
const RESULT_LIFETIME: Duration = Duration::from_secs(60);

/// Checks passwords.
pub(super) struct PasswordChecks {
    /// A key of this process, so that what is remembered is of no use elsewhere.
    key: hmac::Key,
    /// Right passwords.
    verified: moka::sync::Cache<CheckKey, ()>,
    /// Checks that run, and their results for a short time.
    results: moka::future::Cache<CheckKey, bool>,
    turns: Arc<Semaphore>,
    queued: Arc<Mutex<HashMap<IpAddr, usize>>>,
    decoys: RandomState,
    background: Handle,
}

/// The HMAC of a user, the hash in the file and a password. A result never becomes wrong: a change
/// of the file leads to another key.
type CheckKey = [u8; 32];

/// A check that has not run yet.
pub(super) struct PasswordCheck {
    key: CheckKey,
    pair: UserPassword,
    /// The user whose hash is compared: another one in place of a user that does not exist.
    compared: Arc<User>,
    exists: bool,
}

/// There are too many checks; the request may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyChecks;

impl PasswordChecks {
    /// Checks that run on the blocking threads of `background`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn new(background: Handle) -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Self {
            key: key.map_err(|_| io::Error::other("the system has no randomness"))?,
            verified: moka::sync::Cache::builder()
                .max_capacity(MAX_VERIFIED)
                .time_to_idle(VERIFIED_IDLE)
                .build(),
            results: moka::future::Cache::builder()
                .max_capacity(MAX_RESULTS)
                .time_to_live(RESULT_LIFETIME)
                .build(),
            turns: Arc::new(Semaphore::new(MAX_RUNNING)),
            queued: Arc::default(),
            decoys: RandomState::new(),
            background,
        })
    }

    /// Looks up basic credentials. Does not block.
    pub(super) fn look_up(&self, clients: &Clients, encoded: &[u8]) -> Identification {
        let Some(pair) = UserPassword::decode(encoded) else {
            return Identification::Known(Credential::Rejected(Reason::Malformed));
        };
        let user = clients.user(pair.user());
        // A user that does not exist costs as much as one that does, on average also where the
        // hashes have different costs.
        let decoy = || clients.nth_user(self.decoys.hash_one(pair.user()));
        let Some(compared) = user.or_else(decoy).cloned() else {
            // No client has users, or all of them were removed.
            let reason = if clients.kinds().basic {
                Reason::WrongPassword
            } else {
                Reason::Scheme
            };
            return Identification::Known(Credential::Rejected(reason));
        };
        let key = self.key(&pair, user.map_or("", |user| user.hash()));
        if let Some(user) = user
            && self.verified.get(&key).is_some()
        {
            return Identification::Known(Credential::User(Arc::clone(user)));
        }
        let exists = user.is_some();
        Identification::Pending(Check::Password(PasswordCheck {
            key,
            pair,
            compared,
            exists,
        }))
    }

    /// Runs a check, or waits for one that runs. Cancel-safe.
    ///
    /// # Errors
    /// When there are too many checks.
    pub(super) async fn run(
        &self,
        check: PasswordCheck,
        address: IpAddr,
    ) -> Result<Credential, TooManyChecks> {
        let PasswordCheck {
            key,
            pair,
            compared,
            exists,
        } = check;
        let user = Arc::clone(&compared);
        let checking = self.compare(compared, pair, address);
        let is_right = self.results.try_get_with(key, checking).await;
        if !(is_right.map_err(|error| *error)? && exists) {
            return Ok(Credential::Rejected(Reason::WrongPassword));
        }
        self.verified.insert(key, ());
        Ok(Credential::User(user))
    }

    async fn compare(
        &self,
        user: Arc<User>,
        pair: UserPassword,
        address: IpAddr,
    ) -> Result<bool, TooManyChecks> {
        let queued = self.enter_queue(address).ok_or(TooManyChecks)?;
        let turn = timeout(QUEUE_TIMEOUT, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| TooManyChecks)?;
        let checked = self.background.spawn_blocking(move || {
            // Held until the check has ended, also if the client has left.
            let _held = (turn, queued);
            user.has_password(pair.password())
        });
        // It fails only when the runtime shuts down.
        Ok(checked.await.unwrap_or(false))
    }

    fn enter_queue(&self, address: IpAddr) -> Option<Queued> {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        let own = queued.get(&address).copied().unwrap_or_default();
        if own >= MAX_QUEUED_PER_ADDRESS || queued.values().sum::<usize>() >= MAX_QUEUED {
            return None;
        }
        queued.insert(address, own + 1);
        Some(Queued {
            address,
            queued: Arc::clone(&self.queued),
        })
    }

    fn key(&self, pair: &UserPassword, hash: &str) -> CheckKey {
        let mut context = hmac::Context::with_key(&self.key);
        // None of the first two contains a control character.
        for part in [pair.user().as_bytes(), b"\0", hash.as_bytes(), b"\0"] {
            context.update(part);
        }
        context.update(pair.password());
        let mut key = [0; 32];
        key.copy_from_slice(context.sign().as_ref());
        key
    }
}

impl std::fmt::Debug for PasswordChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasswordChecks").finish_non_exhaustive()
    }
}

/// A check that counts as waiting or running until this is dropped.
struct Queued {
    address: IpAddr,
    queued: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = queued.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                queued.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{access::PasswordFile, server::Requirement};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn clients(text: &str) -> Clients {
        let mut clients = Clients::default();
        let file = PasswordFile::parse(text).unwrap();
        clients
            .allow("edge", &["**".to_owned()], Requirement::Password(file))
            .unwrap();
        clients
    }

    fn line(user: &str, password: &str) -> String {
        let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap();
        format!("{user}:{hash}\n")
    }

    fn encoded(user: &str, password: &str) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    }

    fn password(check: Check) -> PasswordCheck {
        match check {
            Check::Password(check) => check,
            Check::Keys(_) => panic!("it is no check of a password"),
        }
    }

    impl PasswordChecks {
        fn fixture() -> Self {
            Self::new(Handle::current()).unwrap()
        }

        /// The credential, and whether it was known already.
        async fn ask(
            &self,
            clients: &Clients,
            encoded: &str,
        ) -> (Result<Credential, TooManyChecks>, bool) {
            match self.look_up(clients, encoded.as_bytes()) {
                Identification::Known(credential) => (Ok(credential), true),
                Identification::Pending(check) => (self.run(password(check), HERE).await, false),
            }
        }
    }

    #[tokio::test]
    async fn a_right_password_is_checked_once_until_its_line_changes() {
        let checks = PasswordChecks::fixture();
        let before = clients(&line("edge", "s3cret"));
        let pair = encoded("edge", "s3cret");
        for was_known in [false, true, true] {
            let (credential, known) = checks.ask(&before, &pair).await;
            assert!(
                matches!(credential, Ok(Credential::User(_))),
                "{credential:?}"
            );
            assert_eq!(known, was_known);
        }
        let after = clients(&line("edge", "other"));
        let wrong = Ok(Credential::Rejected(Reason::WrongPassword));
        assert_eq!(checks.ask(&after, &pair).await, (wrong, false));
        let (credential, _) = checks.ask(&after, &encoded("edge", "other")).await;
        assert!(matches!(credential, Ok(Credential::User(_))));
    }

    #[tokio::test]
    async fn a_user_that_does_not_exist_is_compared_with_another_one_and_refused() {
        let checks = PasswordChecks::fixture();
        let clients = clients(&line("edge", "s3cret"));
        // Even with the password of the user that it is compared with.
        let nobody = encoded("nobody", "s3cret");
        let Identification::Pending(check) = checks.look_up(&clients, nobody.as_bytes()) else {
            panic!("nothing was compared");
        };
        let check = password(check);
        assert_eq!((check.compared.name(), check.exists), ("edge", false));
        let wrong = Ok(Credential::Rejected(Reason::WrongPassword));
        for _ in 0..2 {
            assert_eq!(checks.ask(&clients, &nobody).await, (wrong.clone(), false));
        }
    }

    #[tokio::test]
    async fn a_thousand_requests_with_one_password_wait_for_one_check() {
        let checks = PasswordChecks::fixture();
        let clients = clients(&line("edge", "s3cret"));
        // No check can run meanwhile.
        let turns = Arc::clone(&checks.turns).acquire_many_owned(MAX_RUNNING as u32);
        let turns = turns.await.unwrap();
        let pair = encoded("edge", "s3cret");
        let asking = (0..1000).map(|_| checks.ask(&clients, &pair));
        let asking = futures_util::future::join_all(asking);
        let released = async {
            tokio::task::yield_now().await;
            assert_eq!(checks.queued.lock().unwrap().get(&HERE), Some(&1));
            drop(turns);
        };
        let (all, ()) = tokio::join!(asking, released);
        for (credential, _) in all {
            assert!(
                matches!(credential, Ok(Credential::User(_))),
                "{credential:?}"
            );
        }
        assert!(checks.queued.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn guesses_beyond_the_limit_are_not_checked_and_hinder_no_other_address() {
        let checks = PasswordChecks::fixture();
        let clients = clients(&line("edge", "s3cret"));
        let turns = Arc::clone(&checks.turns).acquire_many_owned(MAX_RUNNING as u32);
        let turns = turns.await.unwrap();
        let guesses: Vec<_> = (0..40)
            .map(|guess| encoded("edge", &guess.to_string()))
            .collect();
        let asking = guesses.iter().map(|guess| checks.ask(&clients, guess));
        let asking = futures_util::future::join_all(asking);
        let other = async {
            tokio::task::yield_now().await;
            let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
            let Identification::Pending(check) =
                checks.look_up(&clients, encoded("edge", "s3cret").as_bytes())
            else {
                panic!("it was not checked before");
            };
            let (credential, ()) = tokio::join!(checks.run(password(check), elsewhere), async {
                drop(turns)
            });
            credential
        };
        let (all, other) = tokio::join!(asking, other);
        assert!(matches!(other, Ok(Credential::User(_))));
        let refused = all.iter().filter(|(asked, _)| *asked == Err(TooManyChecks));
        assert_eq!(refused.count(), guesses.len() - MAX_QUEUED_PER_ADDRESS);
        // A check that was refused is not remembered as one that failed.
        let again = checks.ask(&clients, guesses.last().unwrap()).await;
        let wrong = Ok(Credential::Rejected(Reason::WrongPassword));
        assert_eq!(again, (wrong, false));
    }
}
