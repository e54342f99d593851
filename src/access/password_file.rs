//! Password files in the format of Apache's htpasswd, with bcrypt hashes only.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// The largest accepted cost. Each step doubles the time of a check, which is about a second at 14.
const MAX_COST: u32 = 14;
/// The least cost of bcrypt, which `htpasswd -B` without `-C` exceeds by one.
const MIN_COST: u32 = 4;

/// The users of a password file. There is at least one, unless all were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PasswordFile(BTreeMap<String, Arc<User>>);

/// A user and the bcrypt hash of the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct User {
    name: String,
    hash: Box<str>,
}

/// The reason for which a file is refused. It quotes nothing of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPasswordFile {
    /// The file has no user.
    #[error("the file has no user; add one with `htpasswd -B -C 10 FILE USER`")]
    Empty,
    /// A line can't be used.
    #[error("line {line} {reason}")]
    Line {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: InvalidLine,
    },
}

/// The reason for which a line is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLine {
    /// It is not `USER:HASH`.
    #[error("is not USER:HASH; write it with `htpasswd -B`")]
    Malformed,
    /// The hash is that of another algorithm, or a plain password.
    #[error("has no bcrypt hash; replace it with `htpasswd -B -C 10 FILE USER`")]
    OtherHash,
    /// The hash takes no time, or too much.
    #[error(
        "has a bcrypt cost of {0}, which is not between {MIN_COST} and {MAX_COST}; replace it with \
         `htpasswd -B -C 10 FILE USER`"
    )]
    Cost(u32),
    /// The user is on an earlier line.
    #[error("has the user of an earlier line; keep one of them")]
    Duplicate,
}

impl PasswordFile {
    /// Parses the text of a file. Empty lines and lines that begin with `#` have no user.
    ///
    /// # Errors
    /// See [`InvalidPasswordFile`].
    pub fn parse(text: &str) -> Result<Self, InvalidPasswordFile> {
        let mut users = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let user = User::parse(line).and_then(|user| match users.contains_key(&user.name) {
                true => Err(InvalidLine::Duplicate),
                false => Ok(user),
            });
            let user = user.map_err(|reason| InvalidPasswordFile::Line {
                line: index + 1,
                reason,
            })?;
            users.insert(user.name.clone(), Arc::new(user));
        }
        if users.is_empty() {
            return Err(InvalidPasswordFile::Empty);
        }
        Ok(Self(users))
    }

    /// The user with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<User>> {
        self.0.get(name)
    }

    /// The users, ordered by name.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.0.values()
    }

    /// Removes the users whose line is not in `text` any more, which need not be valid as a whole.
    /// Returns whether there were any.
    pub fn retain_lines_of(&mut self, text: &[u8]) -> bool {
        let before = self.0.len();
        self.0.retain(|_, user| {
            text.split(|byte| *byte == b'\n')
                .any(|line| user.is_line(line.trim_ascii()))
        });
        self.0.len() < before
    }
}

impl User {
    fn parse(line: &str) -> Result<Self, InvalidLine> {
        let (name, hash) = line.split_once(':').ok_or(InvalidLine::Malformed)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(InvalidLine::Malformed);
        }
        // `$2x$` marks the hashes of an implementation that was broken.
        if !["$2a$", "$2b$", "$2y$"]
            .iter()
            .any(|prefix| hash.starts_with(prefix))
        {
            return Err(InvalidLine::OtherHash);
        }
        let parts: bcrypt::HashParts = hash.parse().map_err(|_| InvalidLine::OtherHash)?;
        match parts.get_cost() {
            MIN_COST..=MAX_COST => Ok(Self {
                name: name.to_owned(),
                hash: hash.into(),
            }),
            cost => Err(InvalidLine::Cost(cost)),
        }
    }

    /// The name of the user.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bcrypt hash. It identifies the password without revealing it, but can be attacked
    /// offline, so it is never shown.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether this is the user's password. Blocks for as long as bcrypt takes, up to about a
    /// second. As in every implementation of bcrypt, only the first 72 bytes count.
    pub fn has_password(&self, password: &[u8]) -> bool {
        bcrypt::verify(password, &self.hash).unwrap_or(false)
    }

    fn is_line(&self, line: &[u8]) -> bool {
        line.strip_prefix(self.name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b":"))
            == Some(self.hash.as_bytes())
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &str, password: &str, version: bcrypt::Version) -> String {
        let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap();
        format!("{user}:{}", hash.format_for_version(version))
    }

    #[test]
    fn the_passwords_of_every_version_of_bcrypt_are_checked() {
        let text = format!(
            "# made by htpasswd\n\n{}\n{}\r\n  {}  \n",
            line("one", "s3cret", bcrypt::Version::TwoY),
            line("two", "other", bcrypt::Version::TwoB),
            line("three", "pass:word", bcrypt::Version::TwoA),
        );
        let file = PasswordFile::parse(&text).unwrap();
        for (user, password, is_valid) in [
            ("one", "s3cret", true),
            ("one", "other", false),
            ("one", "", false),
            ("two", "other", true),
            ("three", "pass:word", true),
        ] {
            let user = file.get(user).unwrap();
            assert_eq!(user.has_password(password.as_bytes()), is_valid, "{user:?}");
        }
        assert_eq!(file.get("four"), None);
        assert!(!format!("{file:?}").contains("$2"), "{file:?}");
    }

    #[test]
    fn a_line_is_refused_with_its_number_and_a_way_out_and_never_quoted() {
        let good = line("good", "s3cret", bcrypt::Version::TwoY);
        let costly = good.replace("$04$", "$31$");
        let broken = good.replace("$2y$", "$2x$");
        for (bad, reason) in [
            ("s3cret", InvalidLine::Malformed),
            (":$2y$05$x", InvalidLine::Malformed),
            ("edge:s3cret", InvalidLine::OtherHash),
            ("edge:$apr1$salt$hash", InvalidLine::OtherHash),
            ("edge:{SHA}hash=", InvalidLine::OtherHash),
            ("edge:$2y$05$short", InvalidLine::OtherHash),
            (&broken, InvalidLine::OtherHash),
            (&costly, InvalidLine::Cost(31)),
            (&good, InvalidLine::Duplicate),
        ] {
            let text = format!("{good}\n\n{bad}\n");
            let error = PasswordFile::parse(&text).unwrap_err();
            assert_eq!(
                error,
                InvalidPasswordFile::Line { line: 3, reason },
                "{bad}"
            );
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert_eq!(
            PasswordFile::parse("\n# none\n"),
            Err(InvalidPasswordFile::Empty)
        );
    }

    #[test]
    fn users_whose_line_is_gone_or_changed_are_removed_from_a_broken_file_too() {
        let (one, two) = (
            line("one", "a", bcrypt::Version::TwoY),
            line("two", "b", bcrypt::Version::TwoY),
        );
        let mut file = PasswordFile::parse(&format!("{one}\n{two}")).unwrap();
        assert!(!file.retain_lines_of(format!("{two}\n{one}\nbroken").as_bytes()));
        let changed = line("one", "c", bcrypt::Version::TwoY);
        assert!(file.retain_lines_of(format!("broken\n{changed}\n{two}\r\n").as_bytes()));
        assert!(file.get("one").is_none() && file.get("two").is_some());
        assert!(file.retain_lines_of(b""));
        assert_eq!(file, PasswordFile::default());
    }
}
