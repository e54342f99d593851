//! From the `Authorization` header to a credential: at once, or after a check that takes time.

use std::{io, net::IpAddr};

use tokio::runtime::Handle;

use super::{
    clients::{Clients, LiveClients},
    credential::{Authorization, Credential},
    jwt_checks::{JwtChecks, KeyCheck},
    password_checks::{PasswordCheck, PasswordChecks, TooManyChecks},
    refusal::Reason,
};

/// Checks credentials, and remembers the results.
#[derive(Debug)]
pub(super) struct CredentialChecks {
    passwords: PasswordChecks,
    tokens: JwtChecks,
}

/// The credential of a request, or the check that has to come first.
pub(super) enum Identification {
    Known(Credential),
    Pending(Check),
}

/// A check that takes time.
pub(super) enum Check {
    Password(PasswordCheck),
    Keys(KeyCheck),
}

impl CredentialChecks {
    /// Passwords are checked on the blocking threads of `background`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn new(background: Handle) -> io::Result<Self> {
        Ok(Self {
            passwords: PasswordChecks::new(background)?,
            tokens: JwtChecks::default(),
        })
    }

    /// Reads the `Authorization` header of a request. Does not block.
    pub(super) fn identify(
        &self,
        clients: &Clients,
        authorization: Option<&[u8]>,
    ) -> Identification {
        Identification::Known(match Authorization::of(authorization) {
            Authorization::None => Credential::None,
            Authorization::Bearer(token) => return self.tokens.look_up(clients, token),
            Authorization::Basic(encoded) => return self.passwords.look_up(clients, encoded),
            Authorization::Aws => Credential::Rejected(Reason::AwsSignature),
            Authorization::Other => Credential::Rejected(Reason::Scheme),
        })
    }

    /// Runs a check, with the clients as they are once it can be decided. Cancel-safe.
    ///
    /// # Errors
    /// When there are too many checks.
    pub(super) async fn run(
        &self,
        check: Check,
        clients: &LiveClients,
        address: IpAddr,
    ) -> Result<Credential, TooManyChecks> {
        match check {
            Check::Password(check) => self.passwords.run(check, address).await,
            Check::Keys(check) => {
                check.refresh().await;
                Ok(self.tokens.run(&check, &clients.current()))
            }
        }
    }
}
